"""A params.yaml as Crystal's values."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crystal.config import Config, ModelConfig, ScaleConfig, UserError, require, require_positive
from crystal.runlog import flattened
from crystal.stageconfig import LrPiece, MixtureEntry, StageConfig
from stages.params_yaml import cluster
from stages.params_yaml.names import FIXED, OPTIONAL, RENAMED, Params, name_of, parts_of
from stages.params_yaml.write import written

AS_RELEASED = ("it, as in CrystalCoder's released params.yaml (ModelZoo 1.x)", "add it, or give another source")


def read(path: Path, config: Config) -> tuple[Params, list[str]]:
    """The file in Crystal's words, and its keys that Crystal does not understand. What the file leaves open stays `config`'s.

    Raises UserError where it is no such file, or says what Crystal does not do or what contradicts itself.
    """
    flat = dict(flattened(_loaded(path)))
    try:
        params = _params(flat, config)
        expected = dict(flattened(written(params)))
        _refuse_differences(flat, expected)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    backend, understood = cluster.read(flat)
    return replace(params, backend=backend), [key for key in flat if key not in expected and key not in understood]


def _loaded(path: Path) -> Any:
    expected = "ModelZoo's params.yaml"
    try:
        with open(path, encoding="utf-8") as file:
            return OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({error}); expected {expected}; mend it, or give another source") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); expected {expected}; check source") from error


def _params(flat: dict[str, Any], config: Config) -> Params:
    scale = replace(config.scale, tokens=None, lr_factor=1.0, **_values(flat, "scale", config.scale))
    optim = replace(config.optim, **_values(flat, "optim", config.optim))
    model = _model(flat, replace(config.model, seq_len=scale.seq_len))
    stage, folders = _stage(flat, config, scale)
    return Params(model, scale, optim, stage, _value(flat, "runconfig.seed", int), folders)


def _model(flat: dict[str, Any], present: ModelConfig) -> ModelConfig:
    values = _values(flat, "model", present)
    kernel = _value(flat, "optimizer.adjust_learning_rate.decoder_kernel", float)
    require_positive("model", {"hidden_size": values["d_model"], "num_heads": values["n_heads"]})
    require_positive("optimizer.adjust_learning_rate", {"decoder_kernel": kernel})
    base_width = round(values["d_model"] * kernel)
    require(
        math.isclose(base_width, values["d_model"] * kernel, rel_tol=1e-9),
        f"optimizer.adjust_learning_rate.decoder_kernel={kernel}",
        f"base width / model.hidden_size={values['d_model']} with a whole base width",
        "mend one of them",
    )
    # Twelve digits take back the rounding of the division by the width multiplier: 0.13875 x 16 is 2.22.
    output_alpha = float(f"{_value(flat, 'model.output_logits_scale', float) * values['d_model'] / base_width:.12g}")
    rotary_fraction = _value(flat, "model.rotary_dim", int) * values["n_heads"] / values["d_model"]
    found = dict(parametrization="mup", depth="none", base_width=base_width, output_alpha=output_alpha, rotary_fraction=rotary_fraction)
    model = replace(present, **values, **found)
    return model if model == present else replace(model, name=name_of(model))


def _stage(flat: dict[str, Any], config: Config, scale: ScaleConfig) -> tuple[StageConfig, dict[str, str]]:
    prefixes = _items(flat, "train_input.mixture")
    folders = {prefix: str(_given(flat, f"{prefix}.data_dir")) for prefix in prefixes}
    parts = {prefix: parts_of(folder) for prefix, folder in folders.items()}
    known = [name for name, _ in parts.values()]
    require(len(set(known)) == len(known), f"folders of {', '.join(known)}", "each source once", "join them")
    like = _configured(config, set(known))
    named = {entry.parts: name for name, entry in like.mixture.items()}
    labels = {prefix: named.get(name, name) for prefix, (name, _) in parts.items()}
    mixture = {
        label: MixtureEntry(
            parts[prefix][0],
            weight=_value(flat, f"{prefix}.weight", float),
            fim=parts[prefix][0].startswith("starcoder/"),
            slice=_slice(flat, f"{prefix}.data_subset"),
        )
        for prefix, label in labels.items()
    }
    rates = {rate for _, rate in parts.values() if rate is not None} or {like.fim.rate}
    require(len(rates) == 1, f"folders of FIM rates {', '.join(map(str, sorted(rates)))}", "one rate a stage", "take folders of one")
    batch_tokens = scale.batch_rows * scale.seq_len
    made = replace(
        like,
        tokens=_value(flat, "runconfig.max_steps", int) * batch_tokens,
        lr=[_lr_piece(flat, prefix, batch_tokens) for prefix in _items(flat, "optimizer.learning_rate")],
        mixture=mixture,
        fim=replace(like.fim, rate=rates.pop()),
    )
    return made, {label: folders[prefix] for prefix, label in labels.items()}


def _configured(config: Config, parts: set[str]) -> StageConfig:
    """The configured stage that trains on these parts, or the only one that is configured."""
    known = list(config.stages.values())
    found = [stage for stage in known if {entry.parts for entry in stage.mixture.values()} == parts] or known
    names = ", ".join(config.stages)
    require(len(found) == 1, f"a mixture of {', '.join(sorted(parts))}", f"that of one of the stages {names}", "say which with stage=N")
    return found[0]


def _lr_piece(flat: dict[str, Any], prefix: str, batch_tokens: int) -> LrPiece:
    steps = _value(flat, f"{prefix}.steps" if f"{prefix}.steps" in flat else f"{prefix}.decay_steps", int)
    start, end = (_value(flat, f"{prefix}.{which}_learning_rate", float) for which in ("initial", "end"))
    return LrPiece(start, end, steps * batch_tokens)


def _slice(flat: dict[str, Any], key: str) -> list[float]:
    if key not in flat:
        return [0.0, 1.0]
    found = re.fullmatch(r"(\d+\.?\d*)-(\d+\.?\d*)", str(flat[key]))
    if found is None:
        raise UserError(f"{key}={flat[key]}; expected one range such as 0.0-0.1; mend it")
    return [float(found[1]), float(found[2])]


def _items(flat: dict[str, Any], key: str) -> list[str]:
    """The numbered keys of a list of mappings."""
    found = [match[0] for name in flat if (match := re.match(re.escape(key) + r"\.\d+(?=\.|$)", name))]
    require(bool(found), f"no list {key}", *AS_RELEASED)
    return list(dict.fromkeys(found))


def _values(flat: dict[str, Any], section: str, present: Any) -> dict[str, Any]:
    return {ours: _value(flat, theirs, type(getattr(present, ours))) for ours, theirs in RENAMED[section].items()}


def _given(flat: dict[str, Any], key: str) -> Any:
    require(key in flat, f"no {key}", *AS_RELEASED)
    return flat[key]


def _value(flat: dict[str, Any], key: str, kind: type) -> Any:
    value = _given(flat, key)
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    require(number, f"{key}={value}", "a whole number" if kind is int else "a number", f"mend {key}")
    return kind(value)


def _refuse_differences(flat: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if key.rpartition(".")[2] not in OPTIONAL:
            _given(flat, key)
        got = flat.get(key, value)
        numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (got, value))
        same = math.isclose(got, value, rel_tol=1e-9) if numbers else type(got) is type(value) and got == value
        why = "as Crystal always does it" if key in FIXED else "by the file's other values"
        require(same, f"{key}={got}", f"{value}, {why}", f"mend {key}; Crystal would train another model")
