"""What a model costs: parameters, FLOPs and bytes, counted from its structure, without building it."""

from __future__ import annotations

from crystal.config import ModelConfig


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part; the tied embedding counts once."""
    d, ffn, layers = config.d_model, config.d_ffn, config.n_layers
    return {
        "embedding": config.vocab_size * d,
        "attention": layers * (4 * d * d + 4 * d),
        "ffn": layers * (3 * d * ffn + 2 * ffn + d),
        "norms": layers * 4 * d + 2 * d,
    }


def forward_flops_per_token(config: ModelConfig) -> int:
    """Matrix-product FLOPs of the forward pass for each token of a full row; attention over all T keys, as is usual for MFU.

    2 for each weight in a matrix product (the tied table once, as the output projection), plus 4 T D a layer for attention's two
    products (Chowdhery et al. 2022, appendix B).
    """
    d, layers = config.d_model, config.n_layers
    weights = layers * (4 * d * d + 3 * d * config.d_ffn) + config.vocab_size * d
    return 2 * weights + layers * 4 * config.seq_len * d


def train_flops_per_token(config: ModelConfig) -> int:
    """Forward and backward: three times the forward pass, nothing recomputed."""
    return 3 * forward_flops_per_token(config)


def memory_bytes(config: ModelConfig, *, rows: int) -> dict[str, int]:
    """Bytes by part for training `rows` rows at once on one device, without sharding or recomputation.

    float32 weights, gradients and AdamW moments; activations that autograd keeps, at 2 bytes each (bfloat16): per layer and
    position 2 normalised inputs, q, k, v, attention's output, gate, up and their product; one chunk of float32 logits.
    """
    from crystal.model.loss import CHUNK_ROWS

    total = sum(parameters(config).values())
    kept = config.n_layers * (8 * config.d_model + 4 * config.d_ffn)
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": 2 * kept * rows * config.seq_len,
        "logits": 2 * 4 * min(CHUNK_ROWS, rows * config.seq_len) * config.vocab_size,
    }
