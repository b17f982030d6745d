"""The port bugs of `parity faults`, by name: what was done wrong, and where it sits.

What each of them changes is in `parity.faults`, which needs both frameworks; this needs neither.
"""

from __future__ import annotations

from typing import NamedTuple


class Listed(NamedTuple):
    """One line of the catalogue.

    Attributes:
        name: for tables and commands.
        sentence: what was done wrong.
        module: the PyTorch path of the module that it sits in, of several, the first to run; or the
            stage of a training step.
    """

    name: str
    sentence: str
    module: str


_ROWS = (
    # a conversion
    Listed(
        "weight-transposed",
        "a square projection is copied without its transposition",
        "model.layers.1.attention.o_proj",
    ),
    Listed(
        "query-interleaved",
        "rows of q stay in the order of files that rotate neighbouring channels",
        "model.layers.1.attention.q_proj",
    ),
    Listed(
        "key-interleaved",
        "rows of k stay in the order of files that rotate neighbouring channels",
        "model.layers.1.attention.k_proj",
    ),
    Listed(
        "query-heads-regrouped",
        "the heads of q are merged as (H, N)",
        "model.layers.1.attention.q_proj",
    ),
    Listed(
        "output-heads-regrouped",
        "the heads that o reads are merged as (H, N)",
        "model.layers.1.attention.o_proj",
    ),
    Listed(
        "key-value-exchanged",
        "k and v are copied to each other's place",
        "model.layers.1.attention.k_proj",
    ),
    Listed(
        "gate-up-exchanged",
        "gate and up are copied to each other's place",
        "model.layers.0.feedforward.gate_proj",
    ),
    Listed(
        "norms-exchanged",
        "the two norms of a layer are copied to each other's place",
        "model.layers.1.attention_norm",
    ),
    Listed(
        "layers-exchanged",
        "layers are sorted as text, so that 10 comes before 2",
        "model.layers.0.attention_norm",
    ),
    Listed("norm-plus-one", "a norm's scale is stored as 1 + w", "model.layers.1.attention_norm"),
    Listed("norm-not-loaded", "the last norm keeps its first values", "model.norm"),
    Listed("weight-not-loaded", "a projection keeps zeros", "model.layers.0.feedforward.down_proj"),
    Listed(
        "weight-rounded", "one tensor went through bfloat16", "model.layers.0.feedforward.down_proj"
    ),
    Listed(
        "weight-flipped",
        "a kernel is reversed, as for a convolution",
        "model.layers.0.feedforward.down_proj",
    ),
    Listed(
        "weight-scaled",
        "a projection is multiplied by 1/sqrt of its inputs",
        "model.layers.1.attention.v_proj",
    ),
    Listed("one-value", "one number of the embedding is off by 1e-3", "model.embed_tokens"),
    Listed("vocabulary-shifted", "the rows of the embedding are one too far", "model.embed_tokens"),
    Listed("head-drifted", "an untied head still holds the embedding", "lm_head"),
    Listed("bias-not-loaded", "a bias keeps zeros", "model.layers.1.attention.q_proj"),
    Listed(
        "key-bias-interleaved",
        "the bias of k stays in the order of files that rotate neighbouring channels",
        "model.layers.1.attention.k_proj",
    ),
    # norms, activations, sums and products
    Listed("eps", "eps is 1e-6 in place of 1e-5", "model.layers.0.attention_norm"),
    Listed(
        "eps-of-the-file", "eps is the float32 nearest to 1e-5", "model.layers.0.attention_norm"
    ),
    Listed("eps-outside", "eps is added after the root", "model.layers.0.attention_norm"),
    Listed("norm-one-plus", "the norm multiplies by 1 + w", "model.layers.0.attention_norm"),
    Listed("norm-float32", "the norm computes in float32", "model.layers.0.attention_norm"),
    Listed("norm-bfloat16", "the norm computes in bfloat16", "model.layers.0.attention_norm"),
    Listed("layer-norm", "the norm subtracts the mean", "model.layers.0.attention_norm"),
    Listed("activation-gelu", "GELU in place of SiLU", "model.layers.0.feedforward"),
    Listed(
        "activation-gelu-tanh",
        "the tanh form of GELU in place of SiLU",
        "model.layers.0.feedforward",
    ),
    Listed("activation-relu", "ReLU in place of SiLU", "model.layers.0.feedforward"),
    Listed("gate-on-up", "SiLU is applied to up, not to gate", "model.layers.0.feedforward"),
    Listed("gate-left-out", "the activation of gate is left out", "model.layers.0.feedforward"),
    Listed("residual-left-out", "the sum after attention is left out", "model.layers.0"),
    Listed(
        "residual-from-norm", "what is added to attention is the normed input", "model.layers.0"
    ),
    Listed("residual-halved", "attention counts half", "model.layers.0"),
    Listed(
        "second-residual-left-out",
        "the sum after the feed-forward layer is left out",
        "model.layers.0",
    ),
    Listed("bias-left-out", "biases of attention are not added", "model.layers.0.attention.q_proj"),
    Listed("matmul-bfloat16", "products have bfloat16 operands", "model.layers.0.attention.q_proj"),
    Listed("matmul-tf32", "products have TF32 operands", "model.layers.0.attention.q_proj"),
    Listed(
        "matmul-float32", "products are computed in float32", "model.layers.0.feedforward.gate_proj"
    ),
    Listed("embedding-scaled", "the embedding is multiplied by sqrt(D)", "model.embed_tokens"),
    # attention and positions
    Listed("scale-missing", "scores are not divided by sqrt(H)", "model.layers.0.attention"),
    Listed("scale-twice", "scores are divided by H", "model.layers.0.attention"),
    Listed("scale-hidden", "scores are divided by sqrt(D)", "model.layers.0.attention"),
    Listed("mask-left-out", "attention sees the future", "model.layers.0.attention"),
    Listed("groups-modulo", "query head n takes key head n % K", "model.layers.0.attention"),
    Listed("heads-merged-inner", "heads are merged as (H, N)", "model.layers.0.attention"),
    Listed("softmax-float32", "the softmax is computed in float32", "model.layers.0.attention"),
    Listed("softmax-bfloat16", "the softmax is computed in bfloat16", "model.layers.0.attention"),
    Listed("keys-for-values", "keys and values are exchanged", "model.layers.0.attention"),
    Listed("rope-neighbours", "neighbouring channels are rotated", "model.layers.0.attention"),
    Listed("rope-backwards", "channels are rotated the other way", "model.layers.0.attention"),
    Listed("rope-left-out", "nothing is rotated", "model.layers.0.attention"),
    Listed(
        "rope-queries-ahead", "queries stand one position ahead of keys", "model.layers.0.attention"
    ),
    Listed("rope-theta", "theta is 500000 in place of 10000", "model"),
    Listed("rope-linear-left-out", "linear scaling of positions is left out", "model"),
    Listed("rope-llama3-left-out", "llama3 scaling is left out", "model"),
    Listed("rope-llama3-factor", "llama3 scaling has another factor", "model"),
    Listed("rope-tables-bfloat16", "cos and sin are rounded to bfloat16", "model"),
    Listed("rope-tables-float32", "cos and sin are computed in float32", "model"),
    Listed("rope-cos-sin", "cos and sin are exchanged", "model"),
    Listed("mask-one-ahead", "the mask lets each query see the next token", "model"),
    Listed("mask-one-behind", "the mask hides each query's own token", "model"),
    # the cache
    Listed(
        "cache-one-position",
        "all rows write where the first row stands",
        "model.layers.0.attention",
    ),
    Listed("cache-padding-written", "padded columns are written too", "model.layers.0.attention"),
    Listed(
        "cache-columns-counted",
        "a row advances by the columns of the call",
        "model.layers.0.attention",
    ),
    Listed(
        "cache-one-slot-late",
        "a slot is left free before the new tokens",
        "model.layers.0.attention",
    ),
    Listed(
        "cache-exchanged", "keys are cached as values, values as keys", "model.layers.0.attention"
    ),
    Listed("cache-rounded", "the cache holds bfloat16", "model.layers.0.attention"),
    Listed("decode-positions", "positions start at 0 in each call", "model"),
    Listed("decode-one-position", "all rows stand where the first row stands", "model"),
    Listed("decode-mask-top-left", "the mask of a cached call is aligned top-left", "model"),
    # gradients
    Listed("gradient-residual-cut", "the residual stream is detached", "model.layers.1"),
    Listed("gradient-norm-scale-cut", "the scale of a norm gets no gradient", "model.norm"),
    Listed("gradient-norm-root-cut", "the root mean square is taken for a constant", "model.norm"),
    Listed("gradient-silu", "the derivative of SiLU lacks a term", "model.layers.1.feedforward"),
    Listed("gradient-doubled", "the gradient of attention is doubled", "model.layers.1.attention"),
    Listed(
        "gradient-clipped", "the gradient of up is clipped by value", "model.layers.1.feedforward"
    ),
    # a training step
    Listed("labels-not-shifted", "each token is its own label", "loss"),
    Listed("labels-shifted-twice", "the label is the token after the next", "loss"),
    Listed("loss-over-padding", "the loss is averaged over padding too", "loss"),
    Listed("loss-of-rows", "the loss is averaged over rows, short ones as much as long", "loss"),
    Listed(
        "accumulation-mean", "passes count alike, however many tokens they have", "accumulation"
    ),
    Listed("accumulation-sum", "the gradients of the passes are added up", "accumulation"),
    Listed("clip-formula", "gradients are clipped by c / norm", "clipping"),
    Listed("clip-per-tensor", "each gradient is clipped by its own norm", "clipping"),
    Listed("clip-left-out", "gradients are not clipped", "clipping"),
    Listed("decay-on-norms", "norms and biases decay too", "optimizer"),
    Listed("decay-left-out", "nothing decays", "optimizer"),
    Listed("decay-coupled", "decay is added to the gradient, as in Adam with L2", "optimizer"),
    Listed("decay-unscaled", "decay is not multiplied by the learning rate", "optimizer"),
    Listed("bias-correction", "moments are not corrected for their zero start", "optimizer"),
    Listed("bias-correction-second", "the second moment is not corrected", "optimizer"),
    Listed("eps-under-root", "eps is added under the root", "optimizer"),
    Listed("schedule-off-by-one", "the schedule begins with its second value", "optimizer"),
)
LISTED = {row.name: row for row in _ROWS}
