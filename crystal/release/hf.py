"""Hugging Face folders to Crystal's checkpoints and back: import_checkpoint, export_crystalcoder, export_stock.

The surprise: no model is ever built here. Tensors go from file to file one at a time, so what a 7 B model takes is the memory of its
largest tensor, and transformers is not needed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal import checkpoint
from crystal.config import ModelConfig, UserError, require
from crystal.data.tokenizer import EOS, FIM_PAD, Tokenizer, load_tokenizer
from crystal.release import fold, layout, shards

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def source_config(source: Path) -> ModelConfig:
    """The model in a folder of the published layout, by that folder's name. Raises UserError where it is not one."""
    path = source / "config.json"
    hf = shards.read_object(path)
    try:
        return layout.model_config(hf, name=source.resolve().name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def import_checkpoint(source: Path, out: Path, *, tokenizer: Path | None) -> ModelConfig:
    """Write the checkpoint `out` from a folder of the published layout, float32; tokenizer None: the folder's own.

    Raises UserError, with nothing written, for what is missing, of another model, or not only tensors.
    """
    config, weights = source_config(source), shards.shard_files(source)
    tokenizer = tokenizer or source / "tokenizer.json"
    expected = "a tokenizer.json in the folder that is imported, or another by data.tokenizer=FILE"
    require(tokenizer.is_file(), f"no {tokenizer}", expected, "give data.tokenizer=FILE")
    refuse_small_table(config, load_tokenizer(tokenizer))
    with checkpoint.whole(out) as folder:
        shards.write_weights(folder / "weights.pt", layout.crystal_shapes(config), _crystal_tensors(config, weights))
        state = {"step": 0, "weights_only": True, "model": asdict(config), "imported_from": str(source)}
        checkpoint.seal(folder, state, tokenizer=tokenizer)
    return config


def refuse_small_table(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise UserError where the tokenizer has ids that the model has not."""
    got = f"the tokenizer has {tokenizer.n_ids} ids, CrystalCoder's 18 added tokens included"
    require(tokenizer.n_ids <= config.vocab_size, got, f"at most the model's {config.vocab_size}", "give the model's own tokenizer")


def _crystal_tensors(config: ModelConfig, weights: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Crystal's tensors as they come out of the published files. Raises UserError where those are not just the ones of `config`."""
    rows, shapes = layout.table(config.n_layers) | {layout.HEAD: []}, layout.published_shapes(config)
    shapes[layout.HEAD] = shapes[layout.EMBEDDING]
    seen: set[str] = set()
    tables: set[bytes] = set()
    for name, tensor in shards.read_tensors(weights):
        got = f"{weights[0].parent} holds {name}{' twice' if name in seen else ''}"
        require(name in rows.keys() - seen, got, "each of the model's tensors once and no other", "it is another model: leave it")
        seen.add(name)
        got, expected = f"{name} is {tuple(tensor.shape)}", f"{tuple(shapes[name])} by config.json"
        require(tensor.shape == shapes[name], got, expected, "fetch both again")
        if name in (layout.HEAD, layout.EMBEDDING):
            tables.add(hashlib.sha256(tensor.float().contiguous().numpy().data).digest())
        if rows[name]:
            yield from zip(rows[name], layout.split(name, tensor, len(rows[name])), strict=True)
    missing = sorted(rows.keys() - seen - {layout.HEAD})
    got = f"{weights[0].parent} lacks {', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
    require(not missing, got, "all of the model's tensors", "fetch it again")
    require(len(tables) == 1, f"{layout.HEAD} is not {layout.EMBEDDING}", "one table for both", "it is another model: leave it")


def export_crystalcoder(source: Path, out: Path, *, dtype: str) -> ModelConfig:
    """Write the checkpoint `source` as a Hugging Face folder in the published layout, with modelling code of our own."""
    config, tokenizer, weights = _opened(source)
    with checkpoint.whole(out) as folder:
        tensors = (layout.joined(name, [weights(part) for part in parts]) for name, parts in layout.table(config.n_layers).items())
        shards.write_safetensors(folder, layout.published_shapes(config), tensors, DTYPES[dtype])
        for name in ("configuration_crystalcoder.py", "modeling_crystalcoder.py"):
            shutil.copyfile(str(files("crystal.release") / "hub" / name), folder / name)
        _write_rest(folder, layout.published_config(config, dtype=dtype), config, tokenizer)
    return config


def export_stock(source: Path, out: Path, *, dtype: str) -> ModelConfig:
    """Write the checkpoint `source` as a StableLM for stock transformers and vLLM: the same logits, see crystal/release/fold.py."""
    config, tokenizer, weights = _opened(source)
    with checkpoint.whole(out) as folder:
        shards.write_safetensors(folder, fold.stock_shapes(config), fold.stock_tensors(config, weights), DTYPES[dtype])
        _write_rest(folder, fold.stock_config(config, dtype=dtype), config, tokenizer)
    return config


def _opened(source: Path) -> tuple[ModelConfig, Tokenizer, Callable[[str], Tensor]]:
    """A checkpoint's model and tokenizer, and what reads one of its tensors."""
    config = checkpoint.read_model(source)
    weights = shards.checkpoint_weights(source)
    return config, load_tokenizer(source / "tokenizer.json"), lambda name: weights[name].read()


def _write_rest(folder: Path, hf: dict[str, Any], config: ModelConfig, tokenizer: Tokenizer) -> None:
    """config.json, generation_config.json and the tokenizer. A text begins with </s>, as in the training rows; <s> is never seen there."""
    ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.special[FIM_PAD]}
    special: dict[str, Any] = {"bos_token": EOS, "eos_token": EOS, "unk_token": "<unk>", "pad_token": FIM_PAD}
    special["additional_special_tokens"] = [name for name in tokenizer.special if name not in special.values()]
    manner = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.seq_len, "clean_up_tokenization_spaces": False}
    for name, value in {
        "config.json": hf | ids,
        "generation_config.json": ids,
        "tokenizer_config.json": manner | special,
        "special_tokens_map.json": special,
    }.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
