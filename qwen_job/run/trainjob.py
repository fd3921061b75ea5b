"""What a Kubeflow TrainJob tells its pods: variables that change the job of its runtime."""

from __future__ import annotations

# The command of a pod, and the variable with the runtime's job.yaml.
COMMAND = ("python3", "-m", "qwen_job", "node", "trainjob")
TEMPLATE = "QWEN_JOB_TEMPLATE"
# The kubernetes section as the chart has it, in JSON; it replaces that of the runtime's job.yaml.
SECTION = "QWEN_JOB_KUBERNETES"
# Variables of a TrainJob -> the field of job.yaml that each sets.
FIELDS = {"QWEN_JOB_MODEL": "model", "QWEN_JOB_DATA": "data.train", "QWEN_JOB_OUTPUT": "output"}
# More assignments, one field=value a line.
MORE = "QWEN_JOB_SET"
# What Trainer's torch policy gives every pod. Its PET_NPROC_PER_NODE is not used: it may be a number of CPUs.
NODES, ADDRESS = "PET_NNODES", "PET_MASTER_ADDR"
# What Kubernetes gives every pod of an Indexed Job.
RANK = "JOB_COMPLETION_INDEX"
