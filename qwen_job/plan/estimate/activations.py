"""Bytes held between forward and backward: activations by layer, and the logits or a fused loss.

Counted from the tensors that autograd saves in transformers' Qwen layers, and from the kernels' code; checked against
real tensors by benchmarks/bench_memory.py --cpu, but for the kernels that only GPUs have.
"""

from __future__ import annotations

from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.plan.estimate.layout import Layout

# The plain loss at its peak, bytes per logit: fp32 log-probabilities, their gradient and that of the logits.
PLAIN_LOSS_BYTES = 12
# Rows of logits per chunk of our chunked loss (train/loss.py).
CHUNKED_ROWS = 2048
# Checkpoints on the GPU where the others are in host memory (train/activation_offloading.py): computed, being copied.
IN_FLIGHT = 2
# Tokens that the gated delta rule works on at once, in transformers and in fla-core.
DELTA_CHUNK = 64


def layer_activation_bytes(layout: Layout) -> int:
    """Return the bytes that autograd saves for one micro-batch in the decoder layer that saves most."""
    shape = layout.shape
    mixing = [_attention_bytes(layout)] if shape.attention_layers else []
    mixing += [_linear_bytes(layout)] if shape.linear else []
    feeding = [_dense_bytes(layout)] if shape.dense_layers else []
    feeding += [_experts_bytes(layout)] if shape.experts else []
    return layout.tokens * (_norms_bytes(layout) + max(mixing) + max(feeding))


def layers_activation_bytes(layout: Layout) -> int:
    """Return the bytes that autograd saves in all decoder layers for one micro-batch."""
    shape = layout.shape
    total = shape.num_hidden_layers * _norms_bytes(layout) + shape.attention_layers * _attention_bytes(layout)
    total += shape.dense_layers * _dense_bytes(layout)
    total += shape.linear.layers * _linear_bytes(layout) if shape.linear else 0
    total += shape.experts.layers * _experts_bytes(layout) if shape.experts else 0
    return layout.tokens * total


def _norms_bytes(layout: Layout) -> int:
    """Bytes a token of a layer's two norms: an fp32 input, the normalized value, the output, 1/rms.

    Fused, they keep the input unchanged, the output and 1/rms.
    """
    return 2 * (_norm_bytes(layout) * layout.shape.hidden_size + 4)


def _attention_bytes(layout: Layout) -> int:
    """Bytes a token of one layer's attention: q, k, v, the output with its log-sum-exp.

    Qwen3 adds a norm of q and k; Qwen3.5 also the gate's sigmoid and its product with the output. ``sdpa`` with a block
    mask, and ``varlen`` below compute capability 8.0, repeat k and v for every query head; ``eager`` also saves the
    probabilities, in fp32 and in the working type: quadratic in the sequence length. GPUs that share rows keep the
    output twice, before and after they exchange heads for slices, and have at least one key-value head each.
    """
    shape, e = layout.shape, layout.element
    half = e < 4
    heads, q, kv = shape.num_attention_heads, shape.query_size, shape.key_value_size
    older = layout.gpu is not None and not layout.gpu.is_cpu and layout.gpu.compute_capability < 8.0
    size = layout.sequence_parallel_size
    repeated = kv * max(1, size // shape.num_key_value_heads)
    kept_kv = repeated if layout.attention == "varlen" and not older else q
    outputs = 1 if size == 1 else 2
    attended = e * ((1 + outputs) * q + 2 * kept_kv) + 4 * heads
    if layout.attention == "eager":
        attended += heads * (layout.sequence_length * (4 + e if half else 4) - 4)
    if shape.qk_norm:
        attended += (_norm_bytes(layout) - e) * (q + kv) + 4 * (heads + shape.num_key_value_heads)
    if shape.output_gate:  # in fp32 the norm of q keeps the projection alive, of which half is the gate
        attended += e * (3 if half else 4) * q
    return attended


def _linear_bytes(layout: Layout) -> int:
    """Bytes a token of one layer's linear attention (Qwen3.5): the gated delta rule, its convolution and gated norm.

    With kernels: the convolution's input and output, normalized q and k, a triangular matrix for each chunk of 64
    tokens, decay and beta (fla-core 0.6, ChunkGatedDeltaRuleFunction). Without: transformers' torch operations in fp32,
    where q and k are repeated for every value head, five matrices for each chunk, and the state after each chunk.
    """
    linear, e = layout.shape.linear, layout.element
    assert linear is not None, "called for hybrids only"
    heads, values = linear.value_heads, linear.value_size
    norm = (12 + 3 * e) * values + 4 * heads
    around = 2 * e * linear.channels + (e + 8) * heads + norm
    if layout.delta_kernels:
        chunk = e * DELTA_CHUNK * heads
        return around + 2 * e * linear.key_size + 8 * linear.key_heads + (e + 4) * heads + chunk
    repeated = heads * linear.key_dim
    state = 4 * repeated * linear.value_dim // DELTA_CHUNK
    copies = 32 if e < 4 else 48  # in fp32, matrix products keep copies of what they transpose
    return around + copies * repeated + 12 * values + 24 * heads + 5 * 4 * DELTA_CHUNK * heads + state


def _dense_bytes(layout: Layout) -> int:
    """Bytes a token of one feed-forward network: gate, silu, up, product; compiled, silu is computed again.

    Tiled, it keeps its input alone, which is the output of the norm before it.
    """
    if layout.tiles:
        return 0
    return (3 if layout.compiled else 4) * layout.element * layout.shape.intermediate_size


def _experts_bytes(layout: Layout) -> int:
    """Bytes a token of one mixture of experts, computed by grouped matrix products.

    For each of its k experts: the hidden state in, the wide values, the output, and four 64-bit indices. The router's
    probabilities are in fp32. A shared expert adds its own, its output and its gate.
    """
    shape, e = layout.shape, layout.element
    experts = shape.experts
    assert experts is not None, "called for mixtures only"
    wide = (3 if layout.compiled else 4) * e
    passed = 2 * e * shape.hidden_size + wide * experts.width + 4 * 8 + 4 + e
    shared = wide * experts.shared_width + e * (shape.hidden_size + 1) if experts.shared_width else 0
    return experts.per_token * passed + 4 * experts.count + 4 + shared


def _norm_bytes(layout: Layout) -> int:
    """Return the bytes that an RMSNorm keeps per normalized number, including its output.

    Unfused, Qwen3.5's norms multiply by 1 + weight in fp32, so the normalized value is kept in fp32, too.
    """
    if layout.fused_norms:
        return 2 * layout.element
    return 8 + layout.element if layout.shape.linear else 4 + 2 * layout.element


def activation_bytes(layout: Layout) -> dict[str, int]:
    """Return the bytes of activations at the peaks of one micro-batch.

    ``saved``: until their layer's backward; ``final norm``: after the last layer, freed before that layer's backward;
    ``working``: what a layer's backward adds to ``saved``. With checkpointing a layer saves only its input and is
    computed again, so ``working`` includes that layer.
    """
    shape, tokens, e = layout.shape, layout.tokens, layout.element
    masked = layout.attention != "varlen" and layout.sequence_parallel_size == 1
    # Cosines and sines, input and position ids, once for all layers.
    common = tokens * (2 * e * shape.head_dim + 20 + (e * layout.sequence_length if masked else 0))
    final_norm = tokens * (_norm_bytes(layout) * shape.hidden_size + 4)
    gradients = _tiled_gradients(layout) if layout.tiles else tokens * e * (_widest(layout) + shape.hidden_size)
    if layout.gradient_checkpointing:
        kept = min(IN_FLIGHT, shape.num_hidden_layers) if layout.activation_offloading else shape.num_hidden_layers
        saved = kept * tokens * e * shape.hidden_size
        working = layer_activation_bytes(layout) - _kept_twice(layout) + gradients
    else:
        saved, working = layers_activation_bytes(layout), gradients
    return {"saved": saved + common, "final norm": final_norm, "working": working}


def _kept_twice(layout: Layout) -> int:
    """Return the bytes that a checkpoint and the first norm of the layer both hold: the layer's input, unconverted."""
    unconverted = layout.fused_norms or layout.element == 4
    return layout.tokens * layout.element * layout.shape.hidden_size if unconverted else 0


def _tiled_gradients(layout: Layout) -> int:
    """Return the bytes that a layer's backward adds at its peak where the feed-forward network is tiled.

    In the network: the gradients of its output and input, one tile with what it saves, and the gradients of the three
    matrices, summed in fp32 and of the tile. In attention, when the network and the norm before it have been freed:
    the gradients of its output, of q, k and v, and of the residual.
    """
    shape, tokens, e = layout.shape, layout.tokens, layout.element
    tile = TILE_TOKENS * e * (6 * shape.intermediate_size + 3 * shape.hidden_size)
    network = 2 * tokens * e * shape.hidden_size + tile + (4 + e) * shape.network_parameters
    freed = _norm_bytes(layout) * shape.hidden_size + 4
    mixing = e * (2 * shape.query_size + 2 * shape.key_value_size + shape.hidden_size) - freed
    if shape.linear:
        mixing = max(mixing, e * (_linear_widest(layout) + shape.hidden_size))
    return max(network, tokens * mixing)


def _widest(layout: Layout) -> int:
    """Return the numbers a token that a layer's backward adds at its peak, in feed-forward or in linear attention.

    A dense feed-forward part is widest where the product of gate and up is differentiated: its gradient and those of
    its two factors, while the product itself was freed after the gradient of the last matrix.
    Linear attention's kernels compute w, u and the states again, and hold the gradients of q, k, v, w and the states
    for every value head (fla-core 0.6, chunk_gated_delta_rule_bwd).
    """
    shape = layout.shape
    found = [2 * shape.intermediate_size]
    if experts := shape.experts:
        passed = 3 * experts.width + shape.hidden_size
        found.append(experts.per_token * passed + 3 * experts.shared_width)
    if shape.linear:
        found.append(_linear_widest(layout))
    return max(found)


def _linear_widest(layout: Layout) -> int:
    linear = layout.shape.linear
    assert linear is not None, "called for hybrids only"
    repeated = linear.value_heads * linear.key_dim
    return 4 * repeated + 4 * linear.value_size + 2 * repeated * linear.value_dim // DELTA_CHUNK


def offloaded_bytes(layout: Layout) -> int:
    """Return the pinned host memory of one rank's checkpoints: torch rounds each up to a power of two."""
    if not (layout.activation_offloading and layout.gradient_checkpointing) or layout.on_cpu:
        return 0
    layers = layout.shape.num_hidden_layers
    return layers * _power_of_two(layout.tokens * layout.element * layout.shape.hidden_size)


def loss_bytes(layout: Layout) -> int:
    """Return the peak bytes that the loss adds, including the head's gradient if a fused loss computes it early.

    ``none`` holds all logits: 12 bytes each. ``torch`` and ``liger`` hold a chunk that is about as large as the hidden
    states (torch's ``aspect_ratio:2``: half of that) in fp32, its softmax and its half-precision gradient; ``chunked``
    holds 2048 rows, once more in fp32 and their log-probabilities (compiled: only their gradient), and the head's
    gradient in fp32. All three keep the gradient of the hidden states. All four take the hidden states of the tokens
    with a target, which is a copy: of every token here.
    """
    tokens, fused_loss, e = layout.tokens, layout.fused_loss, layout.element
    hidden, vocabulary = layout.shape.hidden_size, layout.shape.vocab_size
    chosen = e * hidden * tokens
    if fused_loss == "none":
        return PLAIN_LOSS_BYTES * tokens * vocabulary + chosen
    if fused_loss == "chunked":
        widened = 4 if e < 4 else 0
        logit = 2 * e if layout.compiled else 4 + widened + e
        return logit * min(tokens, CHUNKED_ROWS) * vocabulary + hidden * (4 * vocabulary + e * tokens) + chosen
    gradients = e * hidden * (tokens + vocabulary)
    rows = _power_of_two(-(-tokens // -(-vocabulary // hidden)))
    return (8 + e) * max(1, rows // 2 if fused_loss == "torch" else rows) * vocabulary + gradients + chosen


def _power_of_two(value: int) -> int:
    """Return the smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()
