"""muP's multipliers through everything that `mup`'s own do not survive (microsoft/mup issues 59 and 60).

The surprise: on two ranks nothing is looked up in modules or groups. Initial values, logits and a step of AdamW are the whole model's,
which they can only be where no multiplier was lost.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from backends.cuda.parallel import parallelize
from crystal.config import AdamWConfig, ModelConfig
from crystal.model.init import initialise
from crystal.model.transformer import Transformer
from crystal.mup.plan import derive, meta_model
from crystal.optim import param_groups, set_lr
from tests.small import random_model, small_batches, small_config

LR = 0.01
Shard = Callable[[Transformer, DeviceMesh], None]


def _to_empty(model: Transformer) -> Transformer:
    empty = meta_model(small_config()).to_empty(device="cpu")
    empty.rope.fill()
    empty.load_state_dict(model.state_dict())
    return empty


def _compiled(model: Transformer) -> Transformer:
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return model


def _reloaded(model: Transformer) -> Transformer:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("change", [copy.deepcopy, _to_empty, _compiled, _reloaded])
def test_multipliers_survive(change: Callable[[Transformer], Transformer]) -> None:
    config = small_config()
    plan, model = derive(config), random_model(config)
    ids_BT = torch.randint(config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids_BT)
        changed = change(copy.deepcopy(model))
        assert (changed(ids_BT) - expected).abs().max() < 1e-5
    groups = param_groups(changed.named_parameters(), plan, AdamWConfig())
    assert {name: group["lr_mult"] for group in groups for name in group["names"]} == {name: p.lr_mult for name, p in plan.items()}


def _sharded(model: Transformer, mesh: DeviceMesh) -> None:
    parallelize(model, mesh, dtype=torch.float32, compiled=False)


def _tensor_parallel(model: Transformer, mesh: DeviceMesh) -> None:
    columns, rows = ("attn.q", "attn.k", "attn.v", "ffn.gate", "ffn.up"), ("attn.out", "ffn.down")
    for block in model.blocks:
        parallelize_module(block, mesh, {name: ColwiseParallel() for name in columns} | {name: RowwiseParallel() for name in rows})
        block.attn.n_heads //= mesh.size()


def test_multipliers_survive_on_two_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (tmp_path,), nprocs=2)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    mesh, config = init_device_mesh("cpu", (2,)), small_config(d_ffn=84, n_layers=3, depth="completep", base_layers=2)
    for shard in (_sharded, _tensor_parallel):
        _check_initial_values(config, shard, mesh)
        _check_a_step(config, shard, mesh, rank)
    dist.destroy_process_group()


def _check_initial_values(config: ModelConfig, shard: Shard, mesh: DeviceMesh) -> None:
    model, plan = Transformer(config), derive(config)
    initialise(model, stds={name: entry.init_std for name, entry in plan.items()}, cut_stds=config.init_cut_stds, seed=1)
    cut = copy.deepcopy(model)
    shard(cut, mesh)
    assert any(parameter.to_local().numel() < parameter.numel() for parameter in cut.parameters() if isinstance(parameter, DTensor))
    for name, value in _whole(cut).items():
        std = plan[name].init_std
        assert torch.equal(value, model.get_parameter(name)), name
        assert std == 0 or value.std() == pytest.approx(0.8796 * std, rel=0.1), f"{name}: a normal cut off at two of the plan's std"


def _check_a_step(config: ModelConfig, shard: Shard, mesh: DeviceMesh, rank: int) -> None:
    """Of random models, the whole one on all rows. Tolerances: of a parameter 1 % of AdamW's first step, of a logit 1e-4."""
    model, plan = random_model(config), derive(config)
    cut, before = copy.deepcopy(model), _whole(model)
    shard(cut, mesh)
    (batch,) = small_batches(config, 1)
    rows = tuple(map(torch.from_numpy, (batch.inputs_BT, batch.labels_BT, batch.mask_BT)))
    _step(cut, config, tuple(tensor[rank::2] for tensor in rows) if shard is _sharded else rows)
    _step(model, config, rows)
    stepped, expected = _whole(cut), _whole(model)
    for name, entry in plan.items():
        first_step = LR * entry.lr_mult
        assert (expected[name] - before[name]).abs().max() > 0.9 * first_step, name
        # Softmax cancels what a key's bias adds to the dims that do not rotate: their gradient is rounding, which AdamW scales up.
        assert name.endswith("attn.k.bias") or (stepped[name] - expected[name]).abs().max() < 0.01 * first_step, name
    with torch.no_grad():
        assert (cut(rows[0]) - model(rows[0])).abs().max() < 1e-4


def _whole(model: nn.Module) -> dict[str, Tensor]:
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value).clone() for name, value in values.items()}


def _step(model: Transformer, config: ModelConfig, batch: tuple[Tensor, ...]) -> None:
    """One step of AdamW, parameter by parameter: under tensor parallelism some are whole and some are not."""
    groups = param_groups(model.named_parameters(), derive(config), AdamWConfig())
    set_lr(groups, LR)
    (model(*batch) / batch[0].numel()).backward()
    torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False).step()
