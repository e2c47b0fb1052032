"""An engine whose parameters are sharded over a device mesh, be it of one GPU.

The surprise: nothing in here but the device is CUDA's; the tests run it on the CPU over gloo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from backends.cuda.parallel import parallelize
from crystal.checkpoint import read_optimizer, read_weights, write_tensors
from crystal.config import require
from crystal.data.loader import Batch
from crystal.engine import LocalEngine, Metrics, TrainSpec, model_inputs
from crystal.model.init import initialise
from crystal.model.transformer import Transformer
from crystal.optim import named_state, param_groups, set_lr


class ShardedEngine(LocalEngine):
    """See crystal/engine.py: Engine."""

    def __init__(self, spec: TrainSpec, *, device: torch.device, dtype: torch.dtype, compiled: bool, micro_rows: int | None) -> None:
        self.spec, self.device, self.dtype, self.step_count = spec, device, dtype, 0
        self.micro_rows = micro_rows or spec.batch_rows
        require(
            spec.batch_rows % self.micro_rows == 0,
            f"backend.micro_rows={self.micro_rows}",
            f"a divisor of the batch's {spec.batch_rows} rows",
            "mend backend.micro_rows",
        )
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("shard",))
        self.model = Transformer(spec.model)
        stds = {name: plan.init_std for name, plan in spec.plan.items()}
        initialise(self.model, stds=stds, cut_stds=spec.model.init_cut_stds, seed=spec.seed)
        self.model.to(device)
        parallelize(self.model, self.mesh, dtype=dtype, compiled=compiled)
        groups = param_groups(self.model.named_parameters(), spec.plan, spec.adamw)
        betas = spec.adamw.beta1, spec.adamw.beta2
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

    def feed(self, batches: Iterable[Batch], n_steps: int, *, save_every: int = 1) -> Iterator[tuple[Tensor, ...]]:
        for _, batch in zip(range(n_steps), batches, strict=False):
            yield self._to_device(batch)

    def _to_device(self, batch: Batch) -> tuple[Tensor, ...]:
        tensors = model_inputs(batch)
        if self.device.type == "cuda":
            return tuple(tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors)
        return tensors

    def step(self, batch: tuple[Tensor, ...]) -> Metrics:
        lr = self.spec.schedule.lr(self.step_count)
        set_lr(self.optimizer.param_groups, lr)
        micro_batches = list(zip(*(tensor.split(self.micro_rows) for tensor in batch), strict=True))
        loss = torch.zeros((), device=self.device)
        for i, micro_batch in enumerate(micro_batches):
            self.model.set_requires_gradient_sync(i == len(micro_batches) - 1)  # type: ignore[operator]
            part = self.model(*micro_batch) / batch[0].numel()
            part.backward()
            loss += part.detach()
        dist.all_reduce(loss)
        grad_norm = _whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.adamw.clip_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        return Metrics(loss / self.mesh.size(), grad_norm, lr)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, float]:
        totals = torch.zeros(2, device=self.device, dtype=torch.float64)
        for batch in batches:
            ids_BT, labels_BT, mask_BT, *documents = self._to_device(batch)
            totals += torch.stack((self.model(ids_BT, labels_BT, mask_BT, *documents), mask_BT.sum()))
        dist.all_reduce(totals)
        loss, labels = totals.tolist()
        return loss, labels

    def save(self, folder: Path) -> None:
        write_tensors(folder / "weights.pt", self.state_dict())
        state = {name: {key: _whole(value).cpu() for key, value in state.items()} for name, state in named_state(self.optimizer).items()}
        write_tensors(folder / "optimizer.pt", {"step_count": self.step_count, "adamw": state})

    @torch.no_grad()
    def load(self, folder: Path, *, optimizer: bool) -> None:
        weights = read_weights(folder)
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            parameter.copy_(_like(weights[name], parameter, self.device))
        if not optimizer:
            return
        saved = read_optimizer(folder)
        self.step_count = saved["step_count"]
        for name, state in saved["adamw"].items():
            parameter = parameters[name]
            self.optimizer.state[parameter] = {
                key: value.to(self.device) if value.ndim == 0 else _like(value, parameter, self.device) for key, value in state.items()
            }

    def state_dict(self) -> Mapping[str, Tensor]:
        return {name: _whole(parameter.detach()).to("cpu", copy=True) for name, parameter in self.model.named_parameters()}

    def facts(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        dtype = str(self.dtype).removeprefix("torch.")
        return {"backend": "cuda", "device": device, "dtype": dtype, "threads": torch.get_num_threads(), "ranks": self.mesh.size()}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """`whole` on the device, cut as `parameter` is."""
    assert isinstance(parameter, DTensor)
    return distribute_tensor(whole.to(device), parameter.device_mesh, parameter.placements)
