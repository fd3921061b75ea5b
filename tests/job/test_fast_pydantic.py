"""Reading a job looks for no plugins."""

from __future__ import annotations

import subprocess
import sys


def test_a_job_is_read_without_a_search_for_plugins() -> None:
    code = "import sys, qwen_job.job as m; m.Job.model_rebuild(); print('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
