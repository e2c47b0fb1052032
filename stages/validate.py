"""`task=validate backend=cerebras`: does the train step of each stage lower for a Cerebras system? Without a cluster."""

from __future__ import annotations

from pathlib import Path

from crystal.config import Config, UserError, require
from crystal.engine import TrainSpec
from crystal.mup.plan import derive
from stages.recipes import recipe
from stages.tasks import instantiated

SHOWN = ("LayerNorm", "Softmax", "SparseSoftmaxCrossEntropyWithLogits", "MatMul", "DotGeneral")


def validate(config: Config) -> None:
    """Print what each stage's lowered step is made of. Raises UserError, naming what failed, after the last of them."""
    got = f"task=validate with backend={config.backend.get('name')}"
    require(config.backend.get("name") == "cerebras", got, "backend=cerebras", "give it: other backends lower nothing")
    backend = instantiated(config.backend, "backend")
    rows, folder = config.scale.batch_rows, Path(config.run.dir) / (backend.mode or "validate")
    systems = backend.cluster.systems(rows)
    print(f"model {config.model.name}: a step of {rows:,} rows of {config.scale.seq_len:,} tokens on {systems} systems, {backend.dtype}")
    if config.dry_run:
        print(f"would lower stage {', '.join(config.stages)} into {folder}")
        return
    failed = []
    for name, stage in config.stages.items():
        spec = TrainSpec(config.model, derive(config.model), config.optim, recipe(stage, config.scale).schedule, rows, config.run.seed)
        found = backend.lower(spec, folder / f"stage{name}", documents=config.attention == "document")
        operations = found["operations"]
        failed += [f"stage {name}: {wrong}" for wrong in found["wrong"]]
        parts = ", ".join(f"{key} {operations[key]:,}" for key in SHOWN if key in operations)
        print(
            f"stage {name}: {'does not lower' if found['wrong'] else 'lowers'}; {found['parameters']:,} parameters, "
            f"{sum(operations.values()):,} operations ({parts}), {found['state_bytes']:,} bytes of state; "
            f"{found['seconds']:.0f} s, {found['memory_bytes'] / 1e9:.2f} GB here"
        )
    if failed:
        raise UserError(f"{'; '.join(failed[:3])}; expected operations that the system has; mend that line, and see {folder}")
