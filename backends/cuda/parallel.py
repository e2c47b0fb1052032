"""How a model is made parallel, from outside of it, in the order that matters: compile the blocks, then shard.

The surprise: `cast_forward_inputs` stays off. FSDP would cast every float that goes into a block to bfloat16, the rotary tables too.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from crystal.model.transformer import Transformer


def parallelize(model: Transformer, mesh: DeviceMesh, *, dtype: torch.dtype, compiled: bool) -> None:
    """Change `model` in place: blocks compiled, parameters sharded over `mesh`, compute in `dtype`, gradients reduced in float32."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
