from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from crystal.model import loss as module
from crystal.model.loss import summed_cross_entropy

CHUNK, D, V, SCALE = 8, 4, 512, 0.3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", CHUNK)


def inputs(n: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    x_BTD = torch.randn(1, n, D, generator=generator).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator).requires_grad_()
    labels_BT = torch.randint(V, (1, n), generator=generator)
    mask_BT = torch.rand(1, n, generator=generator).round(decimals=1) * (torch.rand(1, n, generator=generator) > 0.3)
    return x_BTD, weight_VD, labels_BT, mask_BT


def plain(x_BTD, weight_VD, labels_BT, mask_BT):
    logits_NV = (x_BTD @ weight_VD.T * SCALE).flatten(0, 1)
    return (F.cross_entropy(logits_NV, labels_BT.flatten(), reduction="none") * mask_BT.flatten()).sum()


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 3])
def test_equals_cross_entropy_on_all_logits(n):
    x, weight, labels, mask = inputs(n)
    expected = plain(x.double(), weight.double(), labels, mask)
    ours = summed_cross_entropy(x, weight, labels, mask, scale=SCALE)
    assert ours.dtype == torch.float32 and ours.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    for got, want in zip(torch.autograd.grad(3 * ours, (x, weight)), torch.autograd.grad(3 * expected, (x, weight)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_masked_positions_count_for_nothing():
    x, weight, labels, mask = inputs(20)
    mask = (mask > 0.5).float()
    changed = torch.where(mask > 0, labels, (labels + 7) % V)
    assert summed_cross_entropy(x, weight, labels, mask, scale=SCALE) == summed_cross_entropy(x, weight, changed, mask, scale=SCALE)
    (grad,) = torch.autograd.grad(summed_cross_entropy(x, weight, labels, mask, scale=SCALE), x)
    assert torch.equal(grad.abs().sum(-1) > 0, mask > 0)


def test_huge_logits_stay_finite():
    x, weight, labels, mask = inputs(CHUNK)
    assert summed_cross_entropy(1e4 * x, weight, labels, mask, scale=SCALE).isfinite()


def test_under_bf16_autocast():
    x, weight, labels, mask = inputs(40)
    expected = plain(x, weight, labels, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = summed_cross_entropy(x, weight, labels, mask, scale=SCALE)
    assert ours.dtype == torch.float32
    assert 0 < abs(ours.item() / expected.item() - 1) < 1e-3, "rounded, but not far off"
    for got, want in zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(expected, (x, weight)), strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 2e-2 * want.norm()


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_never_more_logits_than_a_chunk():
    with Largest() as seen:
        plain(*inputs(8 * CHUNK))
    assert seen.numel == 8 * CHUNK * V, "the mode sees the logits of the plain way"
    with Largest() as seen:
        summed_cross_entropy(*inputs(8 * CHUNK), scale=SCALE).backward()
    assert seen.numel == CHUNK * V
