"""task=import and task=export: checkpoints from and to the folders of other programs, and ModelZoo's params.yaml."""

from __future__ import annotations

from pathlib import Path

from crystal import checkpoint
from crystal.config import Config, ModelConfig, require
from crystal.model.cost import parameters
from crystal.release import hf
from stages.out import new_out
from stages.params_yaml.commands import export_params, import_params
from stages.tasks import chosen_checkpoint

FORMATS = {"hf": hf.export_stock, "crystalcoder": hf.export_crystalcoder}


def import_weights(config: Config) -> None:
    """Write a checkpoint from a Hugging Face folder in the published CrystalCoder layout, or a configuration from a params.yaml."""
    expected = "a Hugging Face folder of CrystalCoder, or a params.yaml"
    require(config.source is not None, "task=import without a source", expected, "give source=PATH")
    source = Path(str(config.source))
    if source.suffix in (".yaml", ".yml"):
        import_params(config, source)
        return
    out = new_out(config, "folder")
    if config.dry_run:
        print(f"would import {source}: {_said(hf.source_config(source), out)}")
        return
    tokenizer = None if config.data.tokenizer is None else Path(config.data.tokenizer)
    print(f"imported {source}: {_said(hf.import_checkpoint(source, out, tokenizer=tokenizer), out)}")


def export_weights(config: Config) -> None:
    """Write a checkpoint as a folder for other programs, or a stage as a params.yaml."""
    if config.format == "params":
        export_params(config)
        return
    known = ", ".join((*FORMATS, "params"))
    require(config.format in FORMATS, f"format={config.format}", f"one of {known}", "hf is for stock transformers and vLLM")
    require(config.dtype in hf.DTYPES, f"dtype={config.dtype}", f"one of {', '.join(hf.DTYPES)}", "mend dtype")
    out, source = new_out(config, "folder"), chosen_checkpoint(config)
    how = f"format={config.format} dtype={config.dtype}"
    if config.dry_run:
        print(f"would export {source}, {how}: {_said(checkpoint.read_model(source), out)}")
        return
    print(f"exported {source}, {how}: {_said(FORMATS[config.format](source, out, dtype=config.dtype), out)}")


def _said(model: ModelConfig, out: Path) -> str:
    return f"{model.name}, {sum(parameters(model).values()):,} parameters, into {out}"
