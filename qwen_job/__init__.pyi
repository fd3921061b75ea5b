from qwen_job.api.following import follow_job as follow_job
from qwen_job.api.jobs import load_job as load_job
from qwen_job.api.jobs import plan_job as plan_job
from qwen_job.api.jobs import render_job as render_job
from qwen_job.api.submission import submit_job as submit_job
from qwen_job.errors import QwenJobError as QwenJobError
from qwen_job.job.job import Job as Job
from qwen_job.launch.backend import Submitted as Submitted
from qwen_job.launch.find import Look as Look
from qwen_job.plan.plan import Plan as Plan
from qwen_job.render.bundle import Bundle as Bundle
from qwen_job.run.metrics import read_metrics as read_metrics

__version__: str
