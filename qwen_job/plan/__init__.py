"""The Plan: memory, speed and the choice."""

from qwen_job.plan.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
