"""Precision, attention, loss and compilation by GPU: decided by compute capability, never by what torch emulates."""

from __future__ import annotations

from qwen_job.errors import JobError
from qwen_job.facts.choices import TorchCompile
from qwen_job.facts.compiling import why_eager
from qwen_job.facts.hardware import Gpu
from qwen_job.facts.train_settings import Circumstances, conflicts
from qwen_job.job import Job
from qwen_job.plan.decision import Ledger

BF16_FROM = 8.0  # Ampere; torch says yes on older GPUs too, because it emulates


def refuse_settings(job: Job, gpu: Gpu) -> None:
    """Refuse settings under train that have no effect on this device.

    Raises:
        JobError: lists each with its position.
    """
    evaluates = bool(job.data.eval or job.data.eval_split)
    ampere = not gpu.is_cpu and gpu.compute_capability >= BF16_FROM
    device = Circumstances(evaluates, on_cpu=gpu.is_cpu, ampere=ampere)
    values = job.train.settings
    found = conflicts(values, list(job.train.extra), device)
    if found:
        raise JobError([job.problem(("train", *name.split(".")), message) for name, message in found])


def decide_precision(job: Job, gpu: Gpu, ledger: Ledger) -> str:
    """Return bf16, fp16 or fp32.

    Raises:
        JobError: the device does not support what the job asks for.
    """
    bf16, fp16 = job.train.bf16, job.train.fp16
    if bf16 and fp16:
        raise JobError([job.problem(("train", "fp16"), "bf16 and fp16 are both true; keep one")])
    if bf16 and not gpu.is_cpu and gpu.compute_capability < BF16_FROM:
        has = f"{gpu.name} (compute capability {gpu.compute_capability}) has no bf16"
        message = f"{has}; remove the line, or write fp16: true"
        raise JobError([job.problem(("train", "bf16"), message)])
    if fp16 and gpu.is_cpu:
        raise JobError([job.problem(("train", "fp16"), "DeepSpeed has no fp16 on a CPU; remove the line")])
    written = "bf16" if bf16 else "fp16" if fp16 else None
    if gpu.is_cpu:
        return str(ledger.decide("precision", written, "fp32", "no GPU: fp32 is faster than bf16 on most processors"))
    if gpu.compute_capability >= BF16_FROM:
        chosen = "fp32" if bf16 is False else "bf16"
        reason = f"{gpu.name} has compute capability {gpu.compute_capability} >= {BF16_FROM}"
    else:
        chosen = "fp32" if fp16 is False else "fp16"
        reason = f"{gpu.name} has compute capability {gpu.compute_capability} < {BF16_FROM}: no bf16"
    if chosen == "fp32":
        reason = f"{'bf16' if bf16 is False else 'fp16'}: false is written in the job"
    return str(ledger.decide("precision", written, chosen, reason))


def decide_attention(job: Job, gpu: Gpu, precision: str, ledger: Ledger, dropout: float = 0.0) -> str:
    """Return varlen, sdpa or eager; ``dropout``: the model's attention_dropout.

    Raises:
        JobError: varlen was written, but the device or the model does not support it.
    """
    written = None if job.train.attention == "auto" else job.train.attention
    possible = not gpu.is_cpu and precision != "fp32"
    kernel = "FlashAttention" if gpu.compute_capability >= BF16_FROM else "torch's memory-efficient attention"
    if written == "varlen" and not possible:
        message = f"varlen needs a GPU and half precision, not {gpu.name} in {precision}; write sdpa"
        raise JobError([job.problem(("train", "attention"), message)])
    if written == "varlen" and dropout:
        message = f"varlen has no dropout, and the model's attention_dropout is {dropout:g}; write sdpa"
        raise JobError([job.problem(("train", "attention"), message)])
    if possible and dropout:
        reason = f"the model's attention_dropout is {dropout:g}, which {kernel} over packed rows does not offer"
        return str(ledger.decide("train.attention", written, "sdpa", reason))
    if possible:
        reason = f"{kernel} over packed rows runs on {gpu.name}"
        return str(ledger.decide("train.attention", written, "varlen", reason))
    reason = "a block mask keeps packed conversations apart in fp32 and on a CPU"
    return str(ledger.decide("train.attention", written, "sdpa", reason))


def decide_fused_loss(job: Job, gpu: Gpu, precision: str, ledger: Ledger) -> str:
    """Return torch, chunked, liger or none."""
    written = None if job.train.fused_loss == "auto" else job.train.fused_loss
    if written == "liger" and (gpu.is_cpu or gpu.compute_capability < BF16_FROM):
        message = f"Liger needs Triton and compute capability 8.0 or more, not {gpu.name}; remove the line"
        raise JobError([job.problem(("train", "fused_loss"), message)])
    if written == "torch" and precision != "fp32":
        message = f"torch's own loss sums in 16 bits, which is too imprecise in {precision}; write chunked"
        raise JobError([job.problem(("train", "fused_loss"), message)])
    if gpu.is_cpu:
        return str(ledger.decide("train.fused_loss", written, "none", "no GPU: the plain loss is faster"))
    # torch 2.13's linear_cross_entropy adds the loss up in the weights' type: 0.9% off in bf16 (LOG.md).
    chosen = "torch" if precision == "fp32" else "chunked"
    return str(ledger.decide("train.fused_loss", written, chosen, "never holds all logits; sums in fp32"))


def decide_torch_compile(
    job: Job, gpu: Gpu, zero_stage: int, ledger: Ledger, *, shared: bool = False, never: str = ""
) -> TorchCompile:
    """Return the job's word, false, or auto: each node looks for a compiler, which the plan cannot see.

    ``shared``: GPUs share each row. ``never``: why such layers are not compiled on any device, or "".

    Raises:
        JobError: they are to be compiled all the same.
    """
    if never and job.train.torch_compile is True:
        message = f"true: layers are not compiled: {never}; write auto or false"
        raise JobError([job.problem(("train", "torch_compile"), message)])
    written = None if job.train.torch_compile == "auto" else job.train.torch_compile
    capability = None if gpu.is_cpu else capability_of(gpu)
    why = why_eager(capability, packed=job.data.packing, zero_stage=zero_stage, shared=shared, never=never)
    reason = (
        why or f"{gpu.name}: where the node has a C compiler, as the image of set ampere does; its log has the answer"
    )
    decided: TorchCompile = ledger.decide("train.torch_compile", written, False if why else "auto", reason)
    return decided


def capability_of(gpu: Gpu) -> tuple[int, int]:
    """Return the compute capability of a GPU as (major, minor)."""
    major, _, minor = f"{gpu.compute_capability:.1f}".partition(".")
    return int(major), int(minor)
