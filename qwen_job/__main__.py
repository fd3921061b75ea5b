"""``python -m qwen_job`` is ``qwen-job``."""

from qwen_job.cli import main

main()
