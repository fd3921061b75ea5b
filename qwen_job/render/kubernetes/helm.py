"""Target helm: values.yaml for charts/qwen-job, which then creates the same objects as target kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen_job import __version__
from qwen_job.facts.released import chart_address
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.engine import render_template
from qwen_job.render.kubernetes.chart_values import chart_values, check_carried
from qwen_job.render.kubernetes.decisions import settings
from qwen_job.render.kubernetes.objects import checked_objects, own_notes, security_notes


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return values.yaml.

    Raises:
        JobError: for a job that Kubernetes could not run.
    """
    chosen = settings(plan)
    things = checked_objects(plan, chosen)
    notes = (
        *chosen.notes,
        *own_notes(things),
        *security_notes(things),
        f"install it with: helm install {chosen.name} charts/qwen-job -f values.yaml; without a checkout, write "
        f"{chart_address()} in place of charts/qwen-job",
    )
    return Bundle("helm", {"values.yaml": values_text(plan, folders)}, "values.yaml", notes=notes)


def values_text(plan: Plan, folders: Sequence[str | Path] = (), *, shipped: bool = False) -> str:
    """Return values.yaml of a job, or, when ``shipped``, the chart's own: every field, names left to the release."""
    chosen = settings(plan)
    fields = chart_values(chosen, shipped=shipped)
    check_carried([field["value"] for field in fields])
    context = {
        "version": __version__,
        "name": chosen.name,
        "shipped": shipped,
        "fields": fields,
    }
    return render_template("helm/values.yaml.j2", context, folders)
