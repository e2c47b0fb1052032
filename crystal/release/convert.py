"""Checkpoints from one kind of file to another, weights and optimizer: Crystal's own, the Cerebras SDK's .mdl, safetensors.

The surprise: AdamW's step. Crystal keeps the number of updates; the SDK keeps powers of the betas, multiplied up in float32. A .mdl of
Crystal's holds the number, too, so that both ways are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal import checkpoint, mdl
from crystal.config import AdamWConfig, ModelConfig, require
from crystal.data.tokenizer import load_tokenizer
from crystal.mdl import Lazy
from crystal.mup.plan import derive, meta_model
from crystal.optim import param_groups
from crystal.release import hf, layout, shards


@dataclass(frozen=True)
class Contents:
    """What is converted: weights by Crystal's names, the optimizer as an optimizer.pt keeps it. Tensors are Lazy."""

    model: ModelConfig
    adamw: AdamWConfig
    weights: Mapping[str, Lazy]
    optimizer: Mapping[str, Any] | None


def export_checkpoint(source: Path, out: Path, *, kind: str) -> ModelConfig:
    """Write the checkpoint `source`, of either kind, as `out` with the files of `kind`, one of WRITERS."""
    state = checkpoint.read_state(source)
    model, adamw = checkpoint.kept_model(state["model"], source), AdamWConfig(**state.get("optim", {}))
    contents = Contents(model, adamw, shards.checkpoint_weights(source), shards.checkpoint_optimizer(source))
    with checkpoint.whole(out) as folder:
        WRITERS[kind](folder, contents)
        finish = checkpoint.describe if kind == "safetensors" else checkpoint.seal  # no backend loads safetensors
        finish(folder, state, tokenizer=source / "tokenizer.json")
    return model


def convertible(source: Path) -> bool:
    """Whether `import_checkpoint` is for `source`, and not the import of Hugging Face folders."""
    return source.suffix == ".mdl" or (source / "state.json").is_file()


def source_state(source: Path, configured: ModelConfig) -> tuple[ModelConfig, dict[str, Any]]:
    """The model of a .mdl or a folder, and the state.json there; without one the configured model. Raises UserError for a damaged one."""
    folder = source if source.is_dir() else source.parent
    if (folder / checkpoint.COMPLETE).is_file():
        state = checkpoint.read_state(folder)
    elif (folder / "state.json").is_file():
        state = shards.read_object(folder / "state.json")
    else:
        return configured, {}
    return checkpoint.kept_model(state.get("model"), folder / "state.json"), state


def import_checkpoint(source: Path, out: Path, *, configured: ModelConfig, tokenizer: Path | None) -> ModelConfig:
    """Write the checkpoint `out` from a .mdl, or from a folder of an export; tokenizer None: the one beside the tensors.

    Raises UserError, with nothing written, for what is missing, damaged, or of another model.
    """
    model, state = source_state(source, configured)
    contents = _checked(_contents(source, model, AdamWConfig(**state.get("optim", {}))), source)
    tokenizer = tokenizer or (source if source.is_dir() else source.parent) / "tokenizer.json"
    require(tokenizer.is_file(), f"no {tokenizer}", "a tokenizer.json beside the tensors, or another", "give data.tokenizer=FILE")
    hf.refuse_small_table(model, load_tokenizer(tokenizer))
    found: dict[str, Any] = {"weights_only": True} if contents.optimizer is None else {"step": contents.optimizer["step_count"]}
    state = {"step": 0} | found | state | {"model": asdict(model), "imported_from": str(source)}
    with checkpoint.whole(out) as folder:
        _write_crystal(folder, contents)
        checkpoint.seal(folder, state, tokenizer=tokenizer)
    return model


def _contents(source: Path, model: ModelConfig, adamw: AdamWConfig) -> Contents:
    """What a .mdl, a folder with one, or a folder of safetensors holds."""
    path = source / checkpoint.MDL if source.is_dir() else source
    if path is source or path.exists():
        return Contents(model, adamw, mdl.weights_in(path), mdl.optimizer_in(path))
    weights, _ = shards.read_safetensors(source, "model")
    if not any(source.glob("optimizer*")):
        return Contents(model, adamw, weights, None)
    tensors, besides = shards.read_safetensors(source, "optimizer")
    steps = besides.get("step_count", "no number")
    require(steps.isdecimal(), f"{source} has step_count={steps} in optimizer.safetensors", "the number of updates", "export it again")
    return Contents(model, adamw, weights, {"step_count": int(steps), "adamw": _nested(tensors)})


def _checked(contents: Contents, source: Path) -> Contents:
    """`contents` as float32. Raises UserError naming the first tensor that is not as in the model."""
    shapes, optimizer = layout.crystal_shapes(contents.model), contents.optimizer
    found, expected = {**contents.weights}, {**shapes}
    if optimizer is not None and optimizer["adamw"]:
        found |= _flat(optimizer["adamw"])
        expected |= {f"{name}.{key}": shape for name, shape in shapes.items() for key in mdl.MOMENTS}
        expected |= {f"{name}.step": torch.Size(()) for name in shapes}
    for name in [*expected, *found]:
        got = f"of shape {tuple(found[name].shape)}" if name in found else "missing"
        want = f"{tuple(expected[name])}" if name in expected else "no tensor of that name"
        require(
            got == f"of shape {want}",
            f"{source}: {name} is {got}",
            f"{want} in model {contents.model.name}",
            "give the model= that it is of",
        )
    floats = {name: Lazy(tensor.shape, torch.float32, partial(_float32, tensor)) for name, tensor in found.items()}
    weights = {name: floats.pop(name) for name in shapes}
    return replace(contents, weights=weights, optimizer=optimizer and {**optimizer, "adamw": _nested(floats)})


def _float32(tensor: Lazy) -> Tensor:
    return tensor.read().float()


def _flat(adamw: Mapping[str, Mapping[str, Lazy]]) -> dict[str, Lazy]:
    """As safetensors have it: "embed.weight.exp_avg"."""
    return {f"{name}.{key}": tensor for name, state in adamw.items() for key, tensor in state.items()}


def _nested(flat: Mapping[str, Lazy]) -> dict[str, dict[str, Lazy]]:
    adamw: dict[str, dict[str, Lazy]] = {}
    for name, tensor in flat.items():
        parameter, _, key = name.rpartition(".")
        adamw.setdefault(parameter, {})[key] = tensor
    return adamw


def _write_crystal(folder: Path, contents: Contents) -> None:
    shards.write_saved(folder / "weights.pt", contents.weights)
    if contents.optimizer is not None:
        shards.write_saved(folder / "optimizer.pt", contents.optimizer)


def _write_mdl(folder: Path, contents: Contents) -> None:
    adamw = contents.adamw
    groups = param_groups(meta_model(contents.model).named_parameters(), derive(contents.model), adamw)
    tree = mdl.laid_out(contents.weights, contents.optimizer, groups, (adamw.beta1, adamw.beta2))
    mdl.write(folder / checkpoint.MDL, tree)


def _write_safetensors(folder: Path, contents: Contents) -> None:
    def put(stem: str, tensors: Mapping[str, Lazy], besides: Mapping[str, str]) -> None:
        shapes, values = {name: tensor.shape for name, tensor in tensors.items()}, (tensor.read() for tensor in tensors.values())
        shards.write_safetensors(folder, shapes, values, torch.float32, stem=stem, besides=besides)

    put("model", contents.weights, {})
    if contents.optimizer is not None:
        put("optimizer", _flat(contents.optimizer["adamw"]), {"step_count": str(contents.optimizer["step_count"])})


WRITERS = {"cerebras": _write_mdl, "crystal": _write_crystal, "safetensors": _write_safetensors}
