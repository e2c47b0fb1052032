"""muP's multipliers through everything that `mup`'s own do not survive."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from backends.cuda.parallel import parallelize
from crystal.config import AdamWConfig
from crystal.model.transformer import Transformer
from crystal.mup.plan import derive, meta_model
from crystal.optim import param_groups
from tests.small import random_model, small_config


def _to_empty(model: Transformer) -> Transformer:
    empty = meta_model(small_config()).to_empty(device="cpu")
    empty.rope.fill()
    empty.load_state_dict(model.state_dict())
    return empty


def _compiled(model: Transformer) -> Transformer:
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return model


def _sharded(model: Transformer) -> Transformer:
    parallelize(model, init_device_mesh("cpu", (1,)), dtype=torch.float32, compiled=False)
    return model


def _tensor_parallel(model: Transformer) -> Transformer:
    mesh = init_device_mesh("cpu", (1,))
    for block in model.blocks:
        split = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(block.ffn, mesh, split)
    return model


def _reloaded(model: Transformer) -> Transformer:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.fixture(scope="module")
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("change", [copy.deepcopy, _to_empty, _compiled, _sharded, _tensor_parallel, _reloaded])
def test_multipliers_survive(change, process_group):
    """What mup's `infshape` does not (microsoft/mup issues 59 and 60): learning rates by name, scales as floats of the modules."""
    config = small_config()
    plan, model = derive(config), random_model(config)
    ids_BT = torch.randint(config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids_BT)
        changed = change(copy.deepcopy(model))
        assert (changed(ids_BT) - expected).abs().max() < 1e-5
    groups = param_groups(changed.named_parameters(), plan, AdamWConfig())
    assert {name: group["lr_mult"] for group in groups for name in group["names"]} == {name: p.lr_mult for name, p in plan.items()}
