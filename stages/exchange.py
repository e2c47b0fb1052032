"""task=import and task=export: checkpoints from and to the files of other programs, ModelZoo's params.yaml, and rows as HDF5."""

from __future__ import annotations

from pathlib import Path

from crystal import checkpoint
from crystal.config import Config, ModelConfig, require
from crystal.model.cost import parameters
from crystal.release import convert, hf
from stages.export_rows import export_rows
from stages.out import new_out
from stages.params_yaml.commands import export_params, import_params
from stages.tasks import chosen_checkpoint

OF_A_STAGE = {"params": export_params, "hdf5": export_rows, "hdf5-stream": export_rows}
FORMATS = {"hf": hf.export_stock, "crystalcoder": hf.export_crystalcoder}


def import_weights(config: Config) -> None:
    """Write a checkpoint from a Hugging Face folder of CrystalCoder, a .mdl or an export; or a configuration from a params.yaml."""
    expected = "a Hugging Face folder of CrystalCoder, a .mdl of the Cerebras backend, an export of safetensors, or a params.yaml"
    require(config.source is not None, "task=import without a source", expected, "give source=PATH")
    source = Path(str(config.source))
    if source.suffix in (".yaml", ".yml"):
        import_params(config, source)
        return
    out = new_out(config, "folder")
    tokenizer = None if config.data.tokenizer is None else Path(config.data.tokenizer)
    converted = convert.convertible(source)
    if config.dry_run:
        model = convert.source_state(source, config.model)[0] if converted else hf.source_config(source)
        print(f"would import {source}: {_said(model, out)}")
        return
    if converted:
        model = convert.import_checkpoint(source, out, configured=config.model, tokenizer=tokenizer)
    else:
        model = hf.import_checkpoint(source, out, tokenizer=tokenizer)
    print(f"imported {source}: {_said(model, out)}")


def export_weights(config: Config) -> None:
    """Write a checkpoint as a folder for other programs, or a stage as a params.yaml or its rows as HDF5."""
    if config.format in OF_A_STAGE:
        OF_A_STAGE[config.format](config)
        return
    known = ", ".join((*FORMATS, *convert.WRITERS, *OF_A_STAGE))
    good = config.format in FORMATS or config.format in convert.WRITERS
    require(good, f"format={config.format}", f"one of {known}", "hf is for stock transformers and vLLM")
    dtypes = list(hf.DTYPES) if config.format in FORMATS else ["float32"]
    require(config.dtype in dtypes, f"dtype={config.dtype} with format={config.format}", " or ".join(dtypes), "mend dtype")
    out, source = new_out(config, "folder"), chosen_checkpoint(config)
    how = f"format={config.format} dtype={config.dtype}"
    if config.dry_run:
        print(f"would export {source}, {how}: {_said(checkpoint.read_model(source), out)}")
        return
    if config.format in FORMATS:
        model = FORMATS[config.format](source, out, dtype=config.dtype)
    else:
        model = convert.export_checkpoint(source, out, kind=config.format)
    print(f"exported {source}, {how}: {_said(model, out)}")


def _said(model: ModelConfig, out: Path) -> str:
    return f"{model.name}, {sum(parameters(model).values()):,} parameters, into {out}"
