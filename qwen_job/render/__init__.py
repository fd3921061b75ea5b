"""From a Plan to a Bundle: file name -> text, for one target. In reading order:

- ``targets``: plan to bundle for any target; ``bundle``: the result
- ``quote``: the one place that quotes; ``engine``: the one Jinja environment; ``sandbox``: users' own templates
- ``configs``, ``container``, ``context``, ``default_image``: what the templates of all targets are given
- ``secret``: no file may contain a secret
- ``local``, ``hostfile``, ``slurm``, ``kubernetes``: the targets
"""

from qwen_job.render.bundle import Bundle
from qwen_job.render.targets import TARGETS, render, render_each

__all__ = ["TARGETS", "Bundle", "render", "render_each"]
