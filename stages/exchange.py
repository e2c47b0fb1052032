"""task=import and task=export: checkpoints from and to the folders of other programs, and ModelZoo's params.yaml."""

from __future__ import annotations

from pathlib import Path

from crystal import checkpoint
from crystal.config import Config, ModelConfig, require
from crystal.model.cost import parameters
from crystal.release import hf
from stages.params_yaml.commands import export_params, import_params
from stages.tasks import chosen_checkpoint

FORMATS = {"hf": hf.export_stock, "crystalcoder": hf.export_crystalcoder}


def import_weights(config: Config) -> None:
    """Write a checkpoint from a Hugging Face folder in the published CrystalCoder layout, or a configuration from a params.yaml."""
    expected = "a Hugging Face folder of CrystalCoder, or a params.yaml"
    require(config.source is not None, "task=import without a source", expected, "give source=PATH")
    assert config.source is not None
    if config.source.endswith((".yaml", ".yml")):
        return import_params(config)
    source, out = Path(config.source), new_folder(config)
    if config.dry_run:
        return print(f"would import {source}: {_said(hf.source_config(source), out)}")
    tokenizer = None if config.data.tokenizer is None else Path(config.data.tokenizer)
    print(f"imported {source}: {_said(hf.import_checkpoint(source, out, tokenizer=tokenizer), out)}")


def export_weights(config: Config) -> None:
    """Write a checkpoint as a folder for other programs, or a stage as a params.yaml."""
    if config.format == "params":
        return export_params(config)
    known = ", ".join((*FORMATS, "params"))
    require(config.format in FORMATS, f"format={config.format}", f"one of {known}", "hf is for stock transformers and vLLM")
    require(config.dtype in hf.DTYPES, f"dtype={config.dtype}", f"one of {', '.join(hf.DTYPES)}", "mend dtype")
    source, out = chosen_checkpoint(config), new_folder(config)
    how = f"format={config.format} dtype={config.dtype}"
    if config.dry_run:
        return print(f"would export {source}, {how}: {_said(ModelConfig(**checkpoint.read_state(source)['model']), out)}")
    print(f"exported {source}, {how}: {_said(FORMATS[config.format](source, out, dtype=config.dtype), out)}")


def new_folder(config: Config) -> Path:
    """out=DIR. Raises UserError where it is not given or there already."""
    require(config.out is not None, f"task={config.task} without out", "a folder to write", "give out=DIR")
    assert config.out is not None
    out = Path(config.out)
    require(not out.exists(), f"out={out} is there already", "a folder that is not there yet", "give another out, or delete it")
    return out


def _said(model: ModelConfig, out: Path) -> str:
    return f"{model.name}, {sum(parameters(model).values()):,} parameters, into {out}"
