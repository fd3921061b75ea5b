"""Rendering: the one Jinja environment, the one place that quotes, and a short module per target."""

from qwen_job.render.bundle import Bundle
from qwen_job.render.targets import TARGETS, render, render_each

__all__ = ["TARGETS", "Bundle", "render", "render_each"]
