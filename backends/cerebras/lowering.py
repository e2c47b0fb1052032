"""One train step traced and lowered to CIRH by the SDK, with no cluster: forward, backward, clipping, AdamW, schedule, loss scaling.

Runs in the SDK's environment: `python -m backends.cerebras.lowering STEP.json FOUND.json`. The surprise: the SDK's own `validate_only`
says "Compile was successful!" also where lowering failed. So the module is read: it must be there, no traceback beside it, and it must
hold the operations that the architecture implies.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.cerebras.engine import CerebrasEngine
from backends.cerebras.options import Options
from crystal.config import AdamWConfig, ModelConfig, UserError
from crystal.engine import Metrics, TrainSpec
from crystal.model.transformer import Transformer
from crystal.mup.plan import derive
from crystal.schedule import Piece, Schedule

MODULE = Path("executors/000001")  # of the SDK's artifact folder: the first and only traced step
OPERATION = re.compile(r"cirh\.([A-Za-z0-9]+)")
STATE = re.compile(r"tensor<([^>]*)> \{tf\.aliasing_output = \d+[^}]*resource_name = \"([^\"]*)\"")  # what a step reads and writes back
BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i1": 1}


def trace(told: dict[str, Any], config: ModelConfig) -> None:
    """Have the SDK trace one step of `told` and lower it; with told["mode"] "compile" also send it to the cluster's compiler.

    It is the step of the training loop with its two closures, so that what is compiled is what will be trained.
    """
    import cerebras.pytorch as cstorch

    options = Options.told(told["options"])
    schedule = Schedule([Piece(**piece) for piece in told["pieces"]])
    spec = TrainSpec(config, derive(config), AdamWConfig(**told["adamw"]), schedule, told["batch_rows"], seed=1)
    engine = CerebrasEngine(spec, options, mode=told["mode"], with_values=False)
    log, save = engine.step_closure(_nothing), engine.checkpoint_closure(_nothing)

    @engine.trace
    def step(batch: tuple[Tensor, ...]) -> None:
        result = engine.step(batch)
        log(result)
        save(result)

    batches = cstorch.utils.data.DataLoader(_Ones, (spec.batch_rows, config.seq_len), told["documents"])
    with options.cluster.refusals():
        for batch in cstorch.utils.data.DataExecutor(batches, num_steps=1):
            step(batch)


def _nothing(metrics: Metrics) -> None:
    """Closures run on a cluster only."""


class _Ones:
    """An endless loader of one batch: only its shapes and types matter."""

    def __init__(self, shape: tuple[int, int], documents: bool) -> None:
        self.shape, self.documents = shape, documents

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        ids_BT = torch.ones(self.shape, dtype=torch.int32)
        while True:
            yield ids_BT, ids_BT, torch.ones(self.shape), *([ids_BT] if self.documents else [])


def read_module(artifacts: Path, config: ModelConfig, n_parameters: int) -> dict[str, Any]:
    """Operations and bytes of state of the lowered module; under "wrong", what shows that lowering failed."""
    folder = artifacts / MODULE
    failures = [_place(json.loads(path.read_text())) for path in sorted(folder.glob("traceback_*.json"))]
    text = (folder / "cirh.mlir").read_text() if (folder / "cirh.mlir").exists() else ""
    operations = Counter(OPERATION.findall(text))
    state = {name: _bytes(shape) for shape, name in STATE.findall(text)}
    wanted = {"LayerNorm": 2 * config.n_layers + 1, "Softmax": config.n_layers, "SparseSoftmaxCrossEntropyWithLogits": 1}
    wrong = failures or ([] if text else ["the lowered module is empty"])
    if not wrong:
        wrong = [f"{operations[name]} {name}, {n} expected" for name, n in wanted.items() if operations[name] != n]
        named = [name for name in state if name.endswith(".embed.weight")]
        wrong += [f"the embedding stands {len(named)} times in the state, once expected"] if len(named) != 1 else []
        for key in ("exp_avg", "exp_avg_sq", "beta1_power", "beta2_power"):
            kept = sum(name.endswith(f".{key}") for name in state)
            wrong += [f"{kept} of AdamW's {key} in the state, {n_parameters} expected"] if kept != n_parameters else []
        wrong += (
            ["the schedule has no state: the rate would stay as it is"] if not any(name.endswith("last_epoch") for name in state) else []
        )
    return {"operations": dict(operations), "state_bytes": sum(state.values()), "wrong": wrong}


def _bytes(tensor: str) -> int:
    *dims, dtype = tensor.split("x")
    return math.prod(map(int, dims)) * BYTES[dtype]


def _place(failure: dict[str, Any]) -> str:
    """What could not be lowered, and the innermost line of our own that asked for it."""
    ours = [frame for frame in failure["traceback"] if not frame["filename"].startswith(("cerebras/", "torch/"))]
    where = f" at {ours[-1]['filename']}:{ours[-1]['line']} ({ours[-1]['function']})" if ours else ""
    return f"{failure['message']}{where}"


def main(step: Path, found: Path) -> None:
    """Trace and lower the step that the file `step` tells, and write what was found."""
    t0 = time.perf_counter()
    os.environ["CSTORCH_DEBUG"] = "1"  # source lines in the module
    told = json.loads(step.read_text())
    config = ModelConfig(**told["model"])
    with torch.device("meta"):
        shapes = [parameter.numel() for parameter in Transformer(config).parameters()]
    try:
        trace(told, config)
        verdict = read_module(Path(told["options"]["artifact_dir"]), config, len(shapes))
    except UserError as error:
        traceback.print_exc()  # whole, in log.txt
        verdict = {"refused": str(error)}
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:  # what tracing raises for what it cannot
        traceback.print_exc()
        verdict = {"operations": {}, "state_bytes": 0, "wrong": [_raised(error)]}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found.write_text(json.dumps(verdict | {"parameters": sum(shapes), "seconds": time.perf_counter() - t0, "memory_bytes": memory}))


def _raised(error: Exception) -> str:
    """What tracing raised, and the innermost line of our own under it."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{said} at {ours[-1].filename}:{ours[-1].lineno} ({ours[-1].name})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
