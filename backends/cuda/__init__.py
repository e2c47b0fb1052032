"""The CUDA backend: one code path from one GPU on: a device mesh, `fully_shard`, bfloat16 compute, `torch.compile`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crystal.config import require, require_positive
from crystal.engine import LocalBackend

if TYPE_CHECKING:
    from backends.cuda.engine import ShardedEngine
    from crystal.engine import TrainSpec


@dataclass
class CudaBackend(LocalBackend):
    """dtype: of the compute; the master weights are float32. micro_rows: rows at once, null: the whole batch."""

    name: str = "cuda"
    dtype: str = "bfloat16"
    compile: bool = True
    micro_rows: int | None = None

    def __post_init__(self) -> None:
        import torch

        known = ("bfloat16", "float32")
        require(self.dtype in known, f"backend.dtype={self.dtype}", "bfloat16 or float32", "mend backend.dtype")
        if self.micro_rows is not None:
            require_positive("backend", {"micro_rows": self.micro_rows})
        build = "a CPU build of torch" if torch.version.cuda is None else "no NVIDIA device"
        require(
            torch.cuda.is_available(),
            f"backend=cuda with {build}",
            "an NVIDIA GPU, its driver and a CUDA build of torch",
            "use backend=cpu, or see task=doctor",
        )

    def build(self, spec: TrainSpec, *, before: Mapping[str, Any]) -> ShardedEngine:
        import torch

        from backends.cuda.engine import ShardedEngine

        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        require(ranks == 1, f"WORLD_SIZE={ranks}", "1: this version trains on one GPU", "start one process, without torchrun")
        return ShardedEngine(
            spec, device=torch.device("cuda", 0), dtype=getattr(torch, self.dtype), compiled=self.compile, micro_rows=self.micro_rows
        )

    def flops_per_s(self) -> float:
        import torch

        x = torch.randn(8192, 8192, device="cuda", dtype=getattr(torch, self.dtype))
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        _ = x @ x
        begin.record()
        _ = x @ x
        end.record()
        end.synchronize()
        return 0.5 * 2 * 8192**3 / (begin.elapsed_time(end) / 1000)
