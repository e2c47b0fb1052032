"""Checkpoints between the real SDK and Crystal's reader and writer: what each writes, the other reads, bit for bit.

`python -m tests.cerebras.test_mdl_sdk` in the SDK's environment makes tests/golden/cstorch.mdl again. The surprise: the SDK has one
backend a process, and its AdamW wants one, so what trains here does so in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crystal import mdl
from crystal.config import AdamWConfig
from crystal.mup.plan import derive
from crystal.optim import param_groups
from tests.small import random_model, small_config
from tests.test_mdl import GOLDEN, ROOT, read, same, sample

cstorch = pytest.importorskip("cerebras.pytorch", reason="needs the Cerebras SDK's environment: make cerebras-check")


def saved_by_the_sdk(path: Path) -> Path:
    from cerebras.pytorch.storage.serializers import DeferredFullTensor

    cstorch.save(sample() | {"full": DeferredFullTensor(torch.Size([2, 3]), torch.float32, 1.5), "pickled": range(3)}, str(path))
    return path


def materialised(tree: Any) -> Any:
    """`tree` with plain tensors for the SDK's deferred ones."""
    if isinstance(tree, dict):
        return {key: materialised(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(materialised, tree))
    return torch.empty(tree.shape, dtype=tree.dtype).copy_(tree) if isinstance(tree, torch.Tensor) else tree


def test_the_golden_file_is_what_the_sdk_writes(tmp_path: Path) -> None:
    assert same(read(saved_by_the_sdk(tmp_path / "new.mdl")), read(GOLDEN))


def test_what_the_sdk_saves_is_read(tmp_path: Path) -> None:
    tree = read(saved_by_the_sdk(tmp_path / "theirs.mdl"))
    assert tree.pop("full").equal(torch.full((2, 3), 1.5)) and tree.pop("pickled") == mdl.Unread("ObjectSerializer")
    assert same(tree, sample()) and same(tree, {key: materialised(cstorch.load(str(GOLDEN)))[key] for key in tree})


def test_what_is_written_the_sdk_loads(tmp_path: Path) -> None:
    mdl.write(tmp_path / "ours.mdl", sample())
    assert same(materialised(cstorch.load(str(tmp_path / "ours.mdl"))), sample())
    mdl.write(tmp_path / "copy.mdl", mdl.read(tmp_path / "ours.mdl"))
    assert same(materialised(cstorch.load(str(tmp_path / "copy.mdl"))), sample())


def in_a_process(work: Callable[[Path], None], folder: Path) -> None:
    program = f"from pathlib import Path; from tests.cerebras.test_mdl_sdk import {work.__name__} as work; work(Path({str(folder)!r}))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert finished.returncode == 0, finished.stderr


class Trained:
    """A small model with the SDK's AdamW, as Crystal's engine sets it up, and gradients that only the step decides."""

    def __init__(self) -> None:
        self.model = random_model(small_config(n_layers=1))
        groups = param_groups(self.model.named_parameters(), derive(small_config(n_layers=1)), AdamWConfig())
        groups = [group | {"adjust_learning_rate": group["lr_mult"]} for group in groups]
        self.optimizer = cstorch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-9)

    def update(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 * group["lr_mult"]
        self.optimizer.step()

    def tree(self, updates: int) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedulers": [{"last_epoch": torch.tensor(updates)}], "global_step": updates, "adam_step": updates,
        }  # fmt: skip


def count_powers(folder: Path) -> None:
    cstorch.backend("CPU")
    trained = Trained()
    for updates in range(1001):
        if updates in (0, 1, 86, 1000):
            for state in trained.optimizer.state_dict()["state"].values():
                assert all(mdl.beta_power(beta, updates).equal(state[f"beta{i}_power"]) for i, beta in ((1, 0.9), (2, 0.95))), updates
        trained.update(updates)


def test_beta_powers_are_the_ones_of_the_real_adamw(tmp_path: Path) -> None:
    in_a_process(count_powers, tmp_path)


def go_on(folder: Path) -> None:
    """5 + 3 updates, and 3 from what Crystal made of the save after 5: the groups are the SDK's too, so its own loading takes it."""
    cstorch.backend("CPU")
    first, second = Trained(), Trained()
    for step in range(5):
        first.update(step)
    cstorch.save(first.tree(5), str(folder / "theirs.mdl"))
    weights, optimizer = mdl.weights_in(folder / "theirs.mdl"), mdl.optimizer_in(folder / "theirs.mdl")
    assert (
        optimizer is not None and optimizer["step_count"] == 5 and {float(s["step"].read()) for s in optimizer["adamw"].values()} == {5.0}
    )
    groups = param_groups(first.model.named_parameters(), derive(small_config(n_layers=1)), AdamWConfig())
    mdl.write(folder / "ours.mdl", mdl.laid_out(weights, optimizer, groups, (0.9, 0.95)))

    ours, theirs = (materialised(cstorch.load(str(folder / name))) for name in ("ours.mdl", "theirs.mdl"))
    assert theirs.pop("schedulers")  # which a converted checkpoint has not, nor the rate that it set
    for group in (*ours["optimizer"]["param_groups"], *theirs["optimizer"]["param_groups"]):
        group.pop("lr")
    assert same(ours, theirs)
    second.model.load_state_dict(ours["model"])
    second.optimizer.load_state_dict(cstorch.load(str(folder / "ours.mdl"))["optimizer"])
    for step in range(5, 8):
        first.update(step)
        second.update(step)
    assert same(second.tree(8), first.tree(8))


def test_training_goes_on_from_a_converted_checkpoint(tmp_path: Path) -> None:
    in_a_process(go_on, tmp_path)


if __name__ == "__main__":
    GOLDEN.unlink(missing_ok=True)
    saved_by_the_sdk(GOLDEN)
