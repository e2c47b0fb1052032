"""One train step for the SDK: the model with its loss, clipping, AdamW, muP's schedule, loss scaling. The same on every device.

Runs in the SDK's environment. The surprise: only the SDK's own schedulers move on a system (torch's freeze the rate), and their pieces
are whole steps; `whole_steps` makes pieces of a scaled-down schedule, which are not, into such lines without changing any rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crystal.config import ModelConfig
from crystal.engine import TrainSpec
from crystal.model.init import initialise
from crystal.model.transformer import Transformer
from crystal.optim import param_groups
from crystal.schedule import Piece


class Loss(nn.Module):
    """The model and its loss, by the one cross-entropy that the system has a kernel for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)

    def forward(self, ids_BT: Tensor, labels_BT: Tensor, mask_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        logits_BTV = self.transformer(ids_BT, documents_BT=documents_BT)
        losses_N = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten().long(), reduction="none")
        return (losses_N * mask_BT.flatten()).sum() / ids_BT.numel()


class TrainStep:
    """Calling it with `model_inputs` of a batch, its ids as int32, takes one step; to be called where the SDK traces.

    sdk: what `cstorch.backend` returned. dtype: "float32" or what `cstorch.amp.set_half_dtype` takes. with_values: initial weights are
    computed, on the CPU, so that they are every other backend's bit for bit; otherwise they have shapes only.
    """

    def __init__(self, spec: TrainSpec, sdk: Any, *, dtype: str, with_values: bool) -> None:
        import cerebras.pytorch as cstorch

        self.spec = spec
        half = dtype != "float32"
        cstorch.amp.enable_mixed_precision(half)
        if half:
            cstorch.amp.set_half_dtype(dtype)
        # On a system mixed precision is a matter of the compiler; on the CPU autocast does it.
        self.autocast = cstorch.amp.autocast if half and sdk.is_cpu else nullcontext
        with nullcontext() if with_values else sdk.device:
            self.model = Loss(spec.model)
        if with_values:
            stds = {name: plan.init_std for name, plan in spec.plan.items()}
            initialise(self.model.transformer, stds=stds, cut_stds=spec.model.init_cut_stds, seed=spec.seed)
        self.compiled = cstorch.compile(self.model, sdk)
        groups = scaled(param_groups(self.model.transformer.named_parameters(), spec.plan, spec.adamw))
        betas = spec.adamw.beta1, spec.adamw.beta2
        self.optimizer = cstorch.optim.AdamW(groups, lr=0.0, betas=betas, eps=spec.adamw.eps)
        self.scheduler = schedule(self.optimizer, spec.schedule.pieces)
        # The CPU's bfloat16 needs no scaling, and the SDK has none there.
        scaling = sdk.is_csx and dtype in ("cbfloat16", "float16")
        self.scaler = cstorch.amp.GradScaler(loss_scale="dynamic") if scaling else None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient norm before clipping, and the rate that groups with multiple 1 had, as 0-d tensors."""
        with self.autocast():
            loss = self.compiled(*inputs)
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.adamw.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        (lr, *_) = (group["lr"] for group in self.optimizer.param_groups if group["lr_mult"] == 1.0)
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss, norm, lr


def scaled(groups: list[dict]) -> list[dict]:
    """Crystal's parameter groups with muP's multiple under the SDK's name. It acts only through `ScalePerParamLR`."""
    return [group | {"adjust_learning_rate": group["lr_mult"]} for group in groups]


def schedule(optimizer: Any, pieces: Sequence[Piece]) -> Any:
    """The SDK's scheduler of straight pieces, each group's rate multiplied by its muP multiple."""
    from cerebras.pytorch.optim.lr_scheduler import ConstantLR, LinearLR, ScalePerParamLR, SequentialLR

    lines = whole_steps(pieces)
    parts = [LinearLR(optimizer, line.start, line.end, int(line.n_steps)) for line in lines] + [ConstantLR(optimizer, pieces[-1].end)]
    ends = [sum(int(line.n_steps) for line in lines[: i + 1]) for i in range(len(lines))]
    return ScalePerParamLR(optimizer, SequentialLR(optimizer, parts, milestones=ends))


def whole_steps(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of whole steps with the same rate at every step before the last piece's end; those without a step are left out."""
    lines, begin = [], 0.0
    for piece in pieces:
        first, end = math.ceil(begin), math.ceil(begin + piece.n_steps)
        slope = (piece.end - piece.start) / piece.n_steps
        at_first = piece.start + slope * (first - begin)
        if end > first:
            lines.append(Piece(at_first, at_first + slope * (end - first), end - first))
        begin += piece.n_steps
    return lines


def place(scheduler: Any, updates: int) -> None:
    """Put a scheduler that `schedule` made where it is after so many updates."""
    sequence = scheduler._scheduler_nested
    begins = [0, *sequence._milestones]
    after = {scheduler: updates, sequence: updates}
    after |= {part: max(0, updates - begin) for part, begin in zip(sequence._schedulers, begins, strict=True)}
    for each, epoch in after.items():
        each.last_epoch = torch.tensor(epoch, dtype=torch.int64).to(scheduler.device)
