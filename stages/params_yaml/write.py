"""Crystal's values as a params.yaml."""

from __future__ import annotations

from typing import Any

from crystal.config import require
from crystal.mup.plan import RESIDUAL_OUTPUTS, derive
from crystal.stageconfig import MixtureEntry
from stages.params_yaml import cluster
from stages.params_yaml.names import FIXED, RENAMED, Params, folder_of
from stages.recipes import recipe


def written(params: Params) -> dict[str, Any]:
    """The params.yaml of one stage: every key that Crystal understands. Raises UserError for what ModelZoo has no key for.

    The cluster's part only where `params.backend` has any options.
    """
    model, made = params.model, recipe(params.stage, params.scale)
    for key, value in (("parametrization", "mup"), ("depth", "none"), ("rotary_base", 10000.0)):
        require(getattr(model, key) == value, f"model.{key}={getattr(model, key)}", f"{value}, for which a params.yaml stands", "mend it")
    require(not params.stage.changes, f"stages.{params.stage.name}.changes", "one mixture, for which a params.yaml stands", "drop them")
    plan = derive(model)
    matrices = {name: entry for name, entry in plan.items() if entry.kind == "matrix"}
    stds = {name.endswith(RESIDUAL_OUTPUTS): entry.init_std for name, entry in matrices.items()}
    flat = {theirs: getattr(owner, ours) for owner, ours, theirs in _renamed(params)} | FIXED
    flat |= {
        **_initializer("embedding_initializer", plan["embed.weight"].init_std, model.init_cut_stds),
        **_initializer("initializer", stds[False], model.init_cut_stds),
        **_initializer("output_layer_initializer", stds[True], model.init_cut_stds),
        "model.loss_weight": 1 / model.seq_len,
        "model.output_logits_scale": model.output_scale,
        "model.rotary_dim": model.rotary_dims,
        "model.weight_initialization_seed": params.seed,
        "optimizer.adjust_learning_rate.decoder_kernel": next(iter(matrices.values())).lr_mult,
        "optimizer.learning_rate": [_piece(piece.start, piece.end, piece.n_steps) for piece in made.schedule.pieces],
        "runconfig.max_steps": made.n_steps,
        "runconfig.seed": params.seed,
        "train_input.mixture": [_source(params, name, entry) for name, entry in params.stage.mixture.items()],
        "train_input.vocab_size": model.vocab_size,
    }
    return nested(flat | (cluster.written(params.backend) if params.backend else {}))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`flat`'s dotted keys as mappings in mappings, sorted."""
    made: dict[str, Any] = {}
    for key in sorted(flat):
        *path, name = key.split(".")
        node = made
        for part in path:
            node = node.setdefault(part, {})
        node[name] = flat[key]
    return made


def _renamed(params: Params) -> list[tuple[Any, str, str]]:
    owners = (("model", params.model), ("scale", params.scale), ("optim", params.optim))
    return [(owner, ours, theirs) for section, owner in owners for ours, theirs in RENAMED[section].items()]


def _initializer(name: str, std: float, cut: float) -> dict[str, Any]:
    values = {"name": "truncated_normal", "mean": 0.0, "std": std, "a": -cut * std, "b": cut * std}
    return {f"model.{name}.{key}": value for key, value in values.items()}


def _piece(start: float, end: float, n_steps: float) -> dict[str, Any]:
    require(n_steps == int(n_steps), f"a learning-rate piece of {n_steps:.6g} steps", "whole steps", "export at scale=published")
    steps, same = int(n_steps), dict.fromkeys(("base_lr", "initial_learning_rate", "learning_rate"), start)
    return {"scheduler": "Linear", **same, "end_learning_rate": end, "steps": steps, "decay_steps": steps}


def _source(params: Params, name: str, entry: MixtureEntry) -> dict[str, Any]:
    folder = params.folders.get(name) or f"/path/to/{folder_of(params.stage, entry)}"
    subset = {} if entry.slice == [0.0, 1.0] else {"data_subset": f"{entry.slice[0]}-{entry.slice[1]}"}
    return {"data_dir": folder, "weight": entry.weight, **subset}
