"""qwen-job: one job.yaml to a fully fine-tuned Qwen-Chat model, on whatever cluster there is."""

__version__ = "0.2.0"
