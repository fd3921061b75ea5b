"""Bytes held between forward and backward: activations by layer, and the logits or a fused loss.

Counted from the tensors that autograd saves in transformers' Qwen2 and Qwen3 layers, and from the loss kernels' code;
checked against real tensors by benchmarks/bench_memory.py --cpu.
"""

from __future__ import annotations

from qwen_job.plan.estimate.layout import Layout

# The plain loss at its peak, bytes per logit: fp32 log-probabilities, their gradient and that of the logits.
PLAIN_LOSS_BYTES = 12
# Rows of logits per chunk of our chunked loss (train/loss.py).
CHUNKED_ROWS = 2048


def layer_activation_bytes(layout: Layout) -> int:
    """Return the bytes that autograd saves in one decoder layer for one micro-batch.

    Per token, with e bytes per element: two norms (an fp32 input, the normalized value, the output, 1/rms; fused: the
    input unchanged, the output, 1/rms), q, k, v and the attention's output with its log-sum-exp, and four values of the
    FFN's width (gate, silu, up, product; compiled, silu is computed again). Qwen3 adds a norm of q and k. ``sdpa`` with
    a block mask, and ``varlen`` below compute capability 8.0, repeat k and v for every query head; ``eager`` also saves
    the probabilities, in fp32 and in the working type: quadratic in the sequence length.
    """
    shape, e = layout.shape, layout.element
    half = e < 4  # in fp32 the norm's input is the residual stream itself, so it is saved only once
    heads, q, kv = shape.num_attention_heads, shape.query_size, shape.key_value_size
    norms = 2 * (_norm_bytes(layout) * shape.hidden_size + 4)
    older = layout.gpu is not None and not layout.gpu.is_cpu and layout.gpu.compute_capability < 8.0
    kept_kv = kv if layout.attention == "varlen" and not older else q
    attended = e * (2 * q + 2 * kept_kv) + 4 * heads
    if layout.attention == "eager":
        attended += heads * (layout.sequence_length * (4 + e if half else 4) - 4)
    if shape.qk_norm:
        attended += (_norm_bytes(layout) - e) * (q + kv) + 4 * (heads + shape.num_key_value_heads)
    wide = 3 if layout.compiled else 4
    return layout.tokens * (norms + attended + wide * e * shape.intermediate_size)


def _norm_bytes(layout: Layout) -> int:
    """Return the bytes that an RMSNorm keeps per normalized number, including its output."""
    return 2 * layout.element if layout.fused_norms else 4 + 2 * layout.element


def activation_bytes(layout: Layout) -> dict[str, int]:
    """Return the bytes of activations: ``saved`` until their layer's backward, ``working`` during a layer's backward.

    With checkpointing a layer saves only its input and is computed again, so ``working`` includes that layer. In both
    cases ``working`` includes the gradients of the FFN's three wide values and of the hidden state.
    """
    shape, tokens, e = layout.shape, layout.tokens, layout.element
    layer = layer_activation_bytes(layout)
    final_norm = tokens * (_norm_bytes(layout) * shape.hidden_size + 2 * e * shape.head_dim + 12)
    mask = e * layout.sequence_length * tokens if layout.attention != "varlen" else 0
    gradients = tokens * e * (3 * shape.intermediate_size + 2 * shape.hidden_size)
    if layout.gradient_checkpointing:
        saved, working = shape.num_hidden_layers * tokens * e * shape.hidden_size, layer + gradients
    else:
        saved, working = shape.num_hidden_layers * layer, gradients
    return {"saved": saved + final_norm + mask, "working": working}


def loss_bytes(layout: Layout) -> int:
    """Return the peak bytes that the loss adds, including the head's gradient if a fused loss computes it early.

    ``none`` holds all logits: 12 bytes each. ``torch`` and ``liger`` hold a chunk that is about as large as the hidden
    states (torch's ``aspect_ratio:2``: half of that) in fp32, its softmax and its half-precision gradient; ``chunked``
    holds 2048 rows, once more in fp32 and their log-probabilities (compiled: only their gradient), and the head's
    gradient in fp32. All three keep the gradient of the hidden states.
    """
    tokens, fused_loss, e = layout.tokens, layout.fused_loss, layout.element
    hidden, vocabulary = layout.shape.hidden_size, layout.shape.vocab_size
    if fused_loss == "none":
        return PLAIN_LOSS_BYTES * tokens * vocabulary
    if fused_loss == "chunked":
        widened = 4 if e < 4 else 0
        logit = 2 * e if layout.compiled else 4 + widened + e
        return logit * min(tokens, CHUNKED_ROWS) * vocabulary + hidden * (4 * vocabulary + e * tokens)
    gradients = e * hidden * (tokens + vocabulary)
    rows = _power_of_two(-(-tokens // -(-vocabulary // hidden)))
    return (8 + e) * max(1, rows // 2 if fused_loss == "torch" else rows) * vocabulary + gradients


def _power_of_two(value: int) -> int:
    """Return the smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()
