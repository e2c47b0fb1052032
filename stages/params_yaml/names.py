"""Which key of a params.yaml is which of Crystal's, and what the folders of its mixture stand for.

The surprise: a data_dir is understood by its last names alone, those that CrystalCoder's released files have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from crystal.cli import choices
from crystal.config import AdamWConfig, ModelConfig, ScaleConfig, require
from crystal.stageconfig import MixtureEntry, StageConfig

# Ours and theirs, where only the name differs.
RENAMED = {
    "model": {
        "d_model": "model.hidden_size",
        "n_layers": "model.num_hidden_layers",
        "n_heads": "model.num_heads",
        "d_ffn": "model.filter_size",
        "vocab_size": "model.vocab_size",
        "norm_eps": "model.layer_norm_epsilon",
        "embedding_scale": "model.embeddings_scale",
        "init_std": "model.embedding_initializer.std",
    },
    "scale": {
        "seq_len": "model.max_position_embeddings",
        "batch_rows": "train_input.batch_size",
        "log_every": "runconfig.log_steps",
        "save_every": "runconfig.checkpoint_steps",
    },
    "optim": {
        "beta1": "optimizer.beta1",
        "beta2": "optimizer.beta2",
        "eps": "optimizer.eps",
        "weight_decay": "optimizer.weight_decay_rate",
        "clip_norm": "optimizer.max_gradient_norm",
    },
    "run": {"seed": "runconfig.seed"},
}

# What Crystal has one way of.
FIXED = {
    "model.attention_dropout_rate": 0.0,
    "model.attention_type": "scaled_dot_product",
    "model.dropout_rate": 0.0,
    "model.loss_scaling": "batch_size",
    "model.nonlinearity": "swiglu",
    "model.position_embedding_type": "rotary",
    "model.scale_glu_initialization": True,
    "model.scale_qk_dot_by_d": True,
    "model.share_embedding_weights": True,
    "model.use_bias_in_output": False,
    "model.use_ffn_bias": True,
    "model.use_ffn_bias_in_attention": True,
    "model.use_position_embedding": True,
    "model.use_projection_bias_in_attention": True,
    "optimizer.correct_bias": True,
    "optimizer.loss_scaling_factor": 1.0,
    "optimizer.optimizer_type": "AdamW",
    "runconfig.num_epochs": None,
    "runconfig.num_steps": None,
}
# May be left out: without them ModelZoo does what Crystal does.
OPTIONAL = ("base_lr", "decay_steps", "learning_rate", "loss_scaling_factor", "num_epochs", "num_steps", "steps")
HALVES = {"_part0of2": "even", "_part1of2": "odd", "": "*"}  # of SlimPajama's files


@dataclass(frozen=True)
class Params:
    """What one params.yaml says. folders: each source's data_dir. backend: options of backend=cerebras by their dotted names."""

    model: ModelConfig
    scale: ScaleConfig
    optim: AdamWConfig
    stage: StageConfig
    seed: int
    folders: dict[str, str]
    backend: dict[str, Any] = field(default_factory=dict)


def name_of(model: ModelConfig) -> str:
    """The name of the preset that has the model's shape; without one its width x layers."""
    folder = files("conf") / "model"
    base = OmegaConf.create((folder / "base.yaml").read_text())
    for name in choices("model"):
        preset = OmegaConf.merge({"model": base}, OmegaConf.create((folder / f"{name}.yaml").read_text()))
        if all(preset.model[key] == getattr(model, key) for key in ("d_model", "n_layers", "n_heads", "d_ffn")):
            return name
    return f"{model.d_model}x{model.n_layers}"


def folder_of(stage: StageConfig, entry: MixtureEntry) -> str:
    """The released files' name for the folder of some prepared parts."""
    halves = {half: suffix for suffix, half in HALVES.items()}
    source, _, part = entry.parts.partition("/")
    if source.startswith("RedPajama") and part in halves:
        return f"SlimPajama/{source.removeprefix('RedPajama')}_train_packed{halves[part]}"
    if entry.parts == "starcoder/*":
        return "StarCoder_fim_shuffled" if entry.slice == [0.0, 1.0] else "StarCoder_fim_train_shuffled/"
    require(source == "starcoder", f"parts={entry.parts}", "RedPajamaNAME/even|odd|* or starcoder/LANGUAGE|*", "export another stage")
    return f"stage{stage.name}_fim_{stage.fim.rate}/train_shuffled_correct_ratio/{part}"


def parts_of(folder: str) -> tuple[str, float | None]:
    """The prepared parts that a data_dir stands for, and the FIM rate where its name says it."""
    if found := re.search(r"([A-Za-z0-9]+)_train_packed(_part[01]of2|)/?$", folder):
        return f"RedPajama{found[1]}/{HALVES[found[2]]}", None
    if found := re.search(r"_fim_(\d+\.?\d*)/(?:[^/]+/)*([^/]+)/?$", folder):
        return f"starcoder/{found[2]}", float(found[1])
    known = ".../NAME_train_packed[_part0of2|_part1of2], .../STAGE_fim_RATE/.../LANGUAGE or .../StarCoder_fim..."
    require(re.search(r"StarCoder_fim\w*/?$", folder) is not None, f"data_dir={folder}", known, "rename it so")
    return "starcoder/*", None
