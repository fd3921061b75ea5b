"""Turns errors of torch, DeepSpeed and the storage into ours, which have an exit code and say what to do."""

from __future__ import annotations

import errno
import sys
import time

import pydantic

from qwen_job.errors import EnvironmentFault, JobError, OutOfMemory, QwenJobError, Retryable
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.text import visible_lines

# A rank whose peer failed waits this long before it exits: the launcher should see the rank with the reason first.
MANNERS_SECONDS = 2.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_PASSING = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)


def classify(error: Exception, config: TrainConfig, deepspeed: DeepSpeedConfig) -> QwenJobError | None:
    """Return the error that a user can act on; None for a bug."""
    if isinstance(error, QwenJobError):
        return error
    return (
        out_of_memory(error, config, deepspeed)
        or storage(error)
        or other_model(error, config)
        or refused_by_deepspeed(error)
        or lost_peer(error)
    )


def storage(error: Exception) -> QwenJobError | None:
    """Return EnvironmentFault for storage that the user must fix, Retryable for storage that is briefly unavailable."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError):
        return None
    where = f"{error.filename2 or error.filename or 'the output folder'}: {error.strerror}"
    if error.errno in _FULL:
        return EnvironmentFault(f"{where}: make room, then run the job again; it resumes from the last save")
    if error.errno in _FORBIDDEN:
        return EnvironmentFault(f"{where}: correct it, or give the job another output, then run the job again")
    if error.errno in _PASSING:
        return Retryable(f"{where}; run the same job again to resume from the last save")
    return None


def out_of_memory(error: Exception, config: TrainConfig, deepspeed: DeepSpeedConfig) -> OutOfMemory | None:
    """Return OutOfMemory with settings that would fit, if memory ran out on the GPU or the host."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and "out of memory" not in text.lower():
        return None
    from qwen_job.train.oom_advice import gpu_memory, oom_message

    peak, capacity = gpu_memory()
    return OutOfMemory(oom_message(config, deepspeed, text[:160], peak, capacity))


def other_model(error: Exception, config: TrainConfig) -> JobError | None:
    """Return JobError if the checkpoint belongs to another model."""
    if "size mismatch" not in str(error) and "loading state_dict" not in str(error):
        return None
    return JobError(
        f"output: {config.output_dir} has checkpoints of another model than {config.model.name}: write "
        f"another output, or the model that the run began with ({' '.join(str(error).split())[:160]})"
    )


def refused_by_deepspeed(error: Exception) -> JobError | None:
    """Return JobError if DeepSpeed rejects a value of its configuration."""
    if not isinstance(error, pydantic.ValidationError) or not error.title.startswith("DeepSpeed"):
        return None
    found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
    return JobError(f"deepspeed.json ({error.title}): {'; '.join(found)[:500]}: correct deepspeed.config")


def lost_peer(error: Exception) -> Retryable | None:
    """Return Retryable if another rank, or a data worker, died; not if this rank failed by itself."""
    text = " ".join(str(error).split())
    if "DataLoader worker" in text:
        return Retryable(f"a data worker died ({text[:200]}); run the same job again to resume from the last save")
    if not any(sign in text for sign in ("gloo", "NCCL", "Connection closed by peer", "Connection reset")):
        return None
    # The rank that failed first has the reason: let the launcher see it first.
    time.sleep(MANNERS_SECONDS)
    return Retryable(f"another rank died ({text[:200]}); run the same job again to resume from the last save")


def say(text: object) -> None:
    """Print to standard error, escaped for a terminal: names and texts may come from shared folders."""
    print(f"qwen-job: {visible_lines(text)}", file=sys.stderr, flush=True)
