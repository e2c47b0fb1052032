"""The model against the published modelling code's own outputs, and against a second implementation written for this test.

The surprise: weights and gradients go through the same renaming, because it is linear: transpose, split, rename.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crystal.config import ModelConfig
from crystal.model.kvcache import Block
from crystal.model.transformer import Transformer
from tests.shared import PARITY, needs_golden
from tests.small import random_model, small_config

TOLERANCE = 1e-5

NAMES = {
    "attn.c_proj": "attn.out", "mlp.c_fc2": "ffn.gate", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down",
    "ln_1": "norm_attn", "ln_2": "norm_ffn",
}  # fmt: skip


def renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the published names, in Crystal's names and layout (Conv1D keeps its weights transposed)."""
    ours = {}
    for name, tensor in published.items():
        tensor = tensor.T if tensor.ndim == 2 and ".h." in name else tensor
        *path, part, kind = name.removeprefix("transformer.").split(".")
        if path[:1] != ["h"]:
            ours[{"wte": "embed", "ln_f": "norm_out"}[part] + "." + kind] = tensor
        elif part == "c_attn":
            ours |= {f"blocks.{path[1]}.attn.{to}.{kind}": third for to, third in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            ours[f"blocks.{path[1]}.{NAMES['.'.join([*path[2:], part])]}.{kind}"] = tensor
    return ours


def furthest(got: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference relative to each expected tensor's largest entry, and where."""
    assert got.keys() == expected.keys()
    return max(((got[name] - expected[name]).abs().max().item() / max(expected[name].abs().max().item(), 1e-9), name) for name in expected)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(PARITY / "golden.npz"))


@pytest.fixture(scope="module")
def published() -> tuple[ModelConfig, Transformer]:
    hf = json.loads((PARITY / "hf" / "config.json").read_text())
    config = ModelConfig(
        "parity", hf["n_embd"], hf["n_layer"], hf["n_head"], hf["n_inner"], hf["vocab_size"], hf["n_positions"],
        rotary_fraction=hf["rotary_dim"] * hf["n_head"] / hf["n_embd"], base_width=round(hf["n_embd"] * hf["mup_width_scale"]),
        norm_eps=hf["layer_norm_epsilon"], embedding_scale=hf["mup_embeddings_scale"], output_alpha=hf["mup_output_alpha"],
    )  # fmt: skip
    weights: dict[str, Tensor] = {}
    for file in (PARITY / "hf").glob("*.bin"):
        weights |= torch.load(file, weights_only=True)
    model = Transformer(config)
    weights.pop("lm_head.weight", None)  # tied: the table once more
    model.load_state_dict(renamed(weights))
    return config, model


@needs_golden
def test_published_logits_loss_and_every_gradient(golden, published):
    _, model = published
    ids = torch.from_numpy(golden["input_ids"]).long()
    assert (model(ids) - torch.from_numpy(golden["logits"])).abs().max() < TOLERANCE
    labels = ids[:, 1:]
    loss = model(ids[:, :-1], labels, torch.ones(labels.shape)) / labels.numel()
    assert loss.item() == pytest.approx(golden["loss"].item(), abs=TOLERANCE)
    model.zero_grad()
    loss.backward()
    expected = renamed({name.removeprefix("grad."): torch.from_numpy(value) for name, value in golden.items() if name.startswith("grad.")})
    worst, where = furthest({name: p.grad for name, p in model.named_parameters()}, expected)
    assert worst < TOLERANCE, where


@needs_golden
@torch.no_grad()
def test_published_cached_logits(golden, published):
    config, model = published
    expected, ids = torch.from_numpy(golden["cached_logits"]), torch.from_numpy(golden["input_ids"]).long()
    block = Block(config, rows=1, length=len(expected), device=torch.device("cpu"))
    block.put(0, 0, block.keys_and_values(0))
    for t, logits_V in enumerate(expected):
        block.look(torch.tensor([t]))
        x_BTD = model.hidden(ids[:1, t : t + 1], block)
        assert (model.logits(x_BTD)[0, 0] - logits_V).abs().max() < TOLERANCE


def reference(config: ModelConfig, weights: dict[str, Tensor], ids_BT: Tensor) -> Tensor:
    """Logits by the book, in float64: explicit softmax over masked scores, rotary pairs as complex numbers."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def rotated(x_BHTK: Tensor) -> Tensor:
        dims = config.rotary_dims
        frequencies = config.rotary_base ** -(torch.arange(0, dims, 2).double() / dims)
        turns = torch.arange(x_BHTK.shape[2]).double()[:, None] * frequencies
        pairs = torch.view_as_complex(x_BHTK[..., :dims].unflatten(-1, (-1, 2)).contiguous())
        return torch.cat([torch.view_as_real(pairs * torch.exp(1j * turns)).flatten(-2), x_BHTK[..., dims:]], dim=-1)

    mup, branch = config.parametrization == "mup", config.base_layers / config.n_layers if config.depth == "completep" else 1
    future = torch.ones(ids_BT.shape[1], ids_BT.shape[1]).triu(1).bool()
    x = config.embedding_scale * weights["embed.weight"][ids_BT]
    for i in range(config.n_layers):
        block = f"blocks.{i}"
        h = norm(x, f"{block}.norm_attn")
        q, k, v = (linear(h, f"{block}.attn.{n}").unflatten(-1, (config.n_heads, -1)).transpose(1, 2) for n in "qkv")
        scores = rotated(q) @ rotated(k).transpose(2, 3) / config.head_dim ** (1 if mup else 0.5)
        e = (scores - scores.amax(-1, keepdim=True)).exp() * ~future
        x = x + branch * linear((e / e.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2), f"{block}.attn.out")
        h = norm(x, f"{block}.norm_ffn")
        gate = linear(h, f"{block}.ffn.gate")
        x = x + branch * linear(gate * torch.sigmoid(gate) * linear(h, f"{block}.ffn.up"), f"{block}.ffn.down")
    return norm(x, "norm_out") @ weights["embed.weight"].T * config.output_alpha * (config.base_width / config.d_model if mup else 1)


@pytest.mark.parametrize("shape", [(1, 24), (3, 17), (5, 2)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        dict(n_heads=1, rotary_fraction=0.25), dict(n_heads=2, rotary_fraction=1.0), dict(n_heads=8, d_ffn=7, n_layers=1),
        dict(d_model=48, n_heads=3, rotary_fraction=0.125, base_width=96), dict(n_layers=4, rotary_base=100.0, norm_eps=1e-2),
        dict(parametrization="sp"), dict(n_layers=3, depth="completep", base_layers=2),
    ],
    ids=str,
)  # fmt: skip
def test_a_second_implementation(changes, shape):
    config = small_config(**changes)
    model, generator = random_model(config), torch.Generator().manual_seed(1)
    ids_BT, labels_BT = (torch.randint(config.vocab_size, shape, generator=generator) for _ in range(2))
    mask_BT = (torch.rand(shape, generator=generator) > 0.2).float()
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    expected = reference(config, weights, ids_BT)
    assert (model(ids_BT) - expected).abs().max() < TOLERANCE
    expected_loss = (F.cross_entropy(expected.flatten(0, 1), labels_BT.flatten(), reduction="none") * mask_BT.flatten()).sum()
    loss = model(ids_BT, labels_BT, mask_BT)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    loss.backward()
    expected_loss.backward()
    worst, where = furthest({name: p.grad for name, p in model.named_parameters()}, {name: w.grad for name, w in weights.items()})
    assert worst < TOLERANCE, where
