"""Choices and defaults that job.yaml and train.yaml share: both sides import them, so that they cannot disagree.

``auto`` is not among them: a job may leave a choice to the plan, train.yaml holds what was chosen. The exceptions
are ``TorchCompile`` and ``MemorySaveSteps``: only the node knows whether it has a compiler, and what a save costs.
"""

from typing import Literal

Source = Literal["modelscope", "huggingface", "local", "random"]
Format = Literal["auto", "reference", "sharegpt", "messages", "alpaca", "query_response", "prompt_completion"]
LongSamples = Literal["truncate", "drop", "split"]
Mask = Literal["assistant", "reference"]
TurnOrder = Literal["strict", "reference", "join"]
Learn = Literal["all", "last"]
# Any other value of data.template is a file.
TEMPLATE: Literal["auto"] = "auto"
NAMED_TEMPLATES = ("auto", "chatml")
Thinking = Literal["keep", "strip", "as_written"]
EmptyThink = Literal["auto", "learn", "mask", "omit"]
SeveralThoughts = Literal["split", "join"]
Interconnect = Literal["infiniband", "roce", "efa", "ethernet"]
Precision = Literal["bf16", "fp16", "fp32"]
Attention = Literal["varlen", "sdpa", "eager"]
FusedLoss = Literal["torch", "chunked", "liger", "none"]
OnNan = Literal["stop", "skip"]
Resume = Literal["auto", "extend", "changed"]
TorchCompile = Literal["auto"] | bool
Export = Literal["text", "original"]
SuiteBackend = Literal["transformers", "vllm"]
WebhookKind = Literal["slack", "feishu", "dingtalk", "wecom", "json"]
NotifyEvent = Literal["start", "done", "fault", "give_up"]
NOTIFY_EVENTS: tuple[NotifyEvent, ...] = ("start", "done", "fault", "give_up")
MemorySaveSteps = Literal["auto"] | int

# numpy's generator takes 32 bits.
SEED_LIMIT = 2**32
SEED = 42
EPOCHS = 5.0
LEARNING_RATE = 1e-5
WEIGHT_DECAY = 0.1
ADAM_BETA1 = 0.9
ADAM_BETA2 = 0.95
ADAM_EPSILON = 1e-8
MAX_GRAD_NORM = 1.0
SCHEDULER: Literal["cosine"] = "cosine"
WARMUP_RATIO = 0.01
SAVE_STEPS = 500
SAVE_TOTAL_LIMIT = 2
DATALOADER_WORKERS = 1
EXPORT: Literal["text"] = "text"
REPORT_TO: Literal["tensorboard"] = "tensorboard"
LOSS_SPIKE_FACTOR = 10.0
HANG_SECONDS = 900
GRACE_SECONDS = 120
REPORT_EVERY = 120
# Longer rows are trained longest first by default: a lack of memory may else show in the last hour only.
LONGEST_FIRST_ABOVE = 32_768
# Tokens of a tile: enough to keep a GPU busy, and to make the sums of the weights' gradients cheap beside the products.
TILE_TOKENS = 4096
# Restarts in place in a row without a newer checkpoint.
IN_PLACE = 3


def states_of(nodes: int) -> int:
    """Return how many states a node keeps in memory at most: the newest and the next, and as many of its neighbour."""
    return 2 if nodes == 1 else 4
