"""The rates of every group while the train step runs on the SDK's CPU: python -m tests.cerebras.rates PIECES N_STEPS, a list a step."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import cerebras.pytorch as cstorch
import torch
from torch import Tensor

from backends.cerebras.step import TrainStep
from crystal.schedule import Piece, Schedule
from tests.small import small_batches, small_spec


def main(pieces: str, n_steps: int) -> None:
    spec = replace(small_spec(), schedule=Schedule([Piece(**piece) for piece in json.loads(pieces)]))
    train_step = TrainStep(spec, cstorch.backend("CPU"), dtype="float32", with_values=True)
    found: list[list[float]] = []

    @cstorch.step_closure
    def keep(rates: list[Tensor]) -> None:
        found.append([float(rate) for rate in rates])

    @cstorch.trace
    def step(batch: tuple[Tensor, Tensor, Tensor]) -> None:
        keep([group["lr"] for group in train_step.optimizer.param_groups])
        train_step(*batch)

    (batch,) = small_batches(spec.model, 1)
    tensors = [torch.from_numpy(array) for array in (batch.inputs_BT, batch.labels_BT, batch.mask_BT)]
    for tensors_BT in cstorch.utils.data.DataExecutor(cstorch.utils.data.DataLoader(lambda: [tensors] * n_steps), num_steps=n_steps):
        step(tensors_BT)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
