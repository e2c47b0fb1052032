"""The CPU backend: float32 master weights, bfloat16 compute where the processor has instructions for it.

The surprise: glibc gives every large freed tensor back to the kernel and faults it in again at the next step, which costs a third to
half of the time; `keep_freed_memory` stops that. Dtype and thread count decide the bits, so both are recorded with the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal.checkpoint import read_optimizer, read_weights, write_tensors
from crystal.config import require, require_positive
from crystal.data.loader import Batch
from crystal.engine import LocalBackend, LocalEngine, Metrics, TrainSpec, model_inputs
from crystal.machine import usable_cores
from crystal.model.init import initialise
from crystal.model.transformer import Transformer
from crystal.optim import named_state, param_groups, set_lr

TRAINING_SHARE = 0.6  # of the rate of a large matrix product that training the tiny preset reaches


def bf16_instructions() -> str:
    """The processor's bfloat16 matrix instructions: "amx", "avx512_bf16" or "" (emulated, about 50 times slower).

    Only AMX makes training faster: with AVX512-BF16 alone a step of the tiny preset took 1.6 times as long as in float32.
    """
    for name, probe in (("amx", "_is_amx_tile_supported"), ("avx512_bf16", "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, probe, lambda: False)():
            return name
    return ""


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step; elsewhere than on glibc nothing happens."""
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


@dataclass
class CpuBackend(LocalBackend):
    """The processor as configured.

    threads: null takes OMP_NUM_THREADS, otherwise every core this process may use. dtype: of the matrix products; auto probes the
    processor.
    """

    name: str = "cpu"
    threads: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        known = ("auto", "float32", "bfloat16")
        require(self.dtype in known, f"backend.dtype={self.dtype}", "auto, float32 or bfloat16", "mend backend.dtype")
        require(
            self.dtype != "bfloat16" or bf16_instructions() != "",
            "backend.dtype=bfloat16 on a processor without AMX or AVX512-BF16",
            "float32 (bfloat16 is emulated there, about 50 times slower)",
            "give backend.dtype=float32",
        )
        if self.threads is not None:
            require_positive("backend", {"threads": self.threads})

    def build(self, spec: TrainSpec, *, before: Mapping[str, Any]) -> CpuEngine:
        keep_freed_memory()
        same = before if before.get("backend") == "cpu" else {}
        dtype = same.get("dtype", "bfloat16" if bf16_instructions() == "amx" else "float32") if self.dtype == "auto" else self.dtype
        return CpuEngine(spec, dtype=dtype, threads=self.threads or same.get("threads") or default_threads())

    def flops_per_s(self) -> float:
        x = torch.randn(1024, 1024)
        fastest_s = min(_seconds(lambda: x @ x) for _ in range(8))
        return TRAINING_SHARE * 2 * 1024**3 / fastest_s


def default_threads() -> int:
    """OMP_NUM_THREADS, as a sweep's launcher sets it for each of its processes, otherwise every usable core."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else usable_cores()


def _seconds(work: Callable[[], object]) -> float:
    t0 = time.perf_counter()
    work()
    return time.perf_counter() - t0


class CpuEngine(LocalEngine):
    """See crystal/engine.py: Engine."""

    def __init__(self, spec: TrainSpec, *, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.spec, self.dtype, self.threads, self.step_count = spec, dtype, threads, 0
        self.model = Transformer(spec.model)
        stds = {name: plan.init_std for name, plan in spec.plan.items()}
        initialise(self.model, stds=stds, cut_stds=spec.model.init_cut_stds, seed=spec.seed)
        groups = param_groups(self.model.named_parameters(), spec.plan, spec.adamw)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(spec.adamw.beta1, spec.adamw.beta2), fused=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    def feed(self, batches: Iterable[Batch], n_steps: int, *, save_every: int = 1) -> Iterator[tuple[Tensor, ...]]:
        for _, batch in zip(range(n_steps), batches, strict=False):
            yield model_inputs(batch)

    def step(self, batch: tuple[Tensor, ...]) -> Metrics:
        lr = self.spec.schedule.lr(self.step_count)
        set_lr(self.optimizer.param_groups, lr)
        with self._autocast():
            loss = self.model(*batch) / batch[0].numel()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.adamw.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        return Metrics(loss.detach(), grad_norm, lr)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, float]:
        loss = labels = 0.0
        for batch in batches:
            with self._autocast():
                loss += self.model(*model_inputs(batch)).item()
            labels += float(batch.mask_BT.sum())
        return loss, labels

    def save(self, folder: Path) -> None:
        write_tensors(folder / "weights.pt", self.model.state_dict())
        write_tensors(folder / "optimizer.pt", {"step_count": self.step_count, "adamw": named_state(self.optimizer)})

    def load(self, folder: Path, *, optimizer: bool) -> None:
        self.model.load_state_dict(read_weights(folder))
        if optimizer:
            saved = read_optimizer(folder)
            self.step_count = saved["step_count"]
            for name, parameter in self.model.named_parameters():
                self.optimizer.state[parameter] = saved["adamw"].get(name, {})

    def state_dict(self) -> Mapping[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def facts(self) -> dict[str, Any]:
        return {"backend": "cpu", "device": _processor(), "dtype": self.dtype, "threads": self.threads, "ranks": 1}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "CPU"
