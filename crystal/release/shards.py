"""Tensors in files: read checkpoints and Hugging Face folders one tensor at a time, write Crystal's files and safetensors the same way.

The surprise: what is nothing but zero bits is not written. The file has a hole there, which reads as zeros and takes no disk: that is
how a model of 7 B parameters goes both ways in a test. Files are read and written at offsets, not mapped: a full disk is then an OSError
and not a dead process, and what has been read or written does not count as this process's memory.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from crystal import mdl
from crystal.checkpoint import MDL
from crystal.config import UserError, require
from crystal.mdl import Lazy

SHARD_BYTES = 2 * 10**9
KINDS = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16"}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of the float with the same bits
HEADER = struct.Struct("<Q")


def shard_files(folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """The files that hold a folder's tensors. Raises UserError where there are none or one is missing."""
    for name in kinds:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            placed = read_object(index).get("weight_map")
            files = sorted({folder / str(file) for file in placed.values()}) if isinstance(placed, dict) else []
            require(bool(files), f"{index} names no files", "a weight_map", "fetch it again")
            missing = [file.name for file in files if not file.is_file()]
            require(not missing, f"{folder} has no {', '.join(missing)}", f"every file that {index.name} names", "fetch what is missing")
            return files
    raise UserError(f"{folder} has no weights; expected {' or '.join(kinds)}, whole or in shards with an index; give source=DIR")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of somebody else's folder. Raises UserError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a Hugging Face folder with that file; check the path") from error
    require(isinstance(value, dict), f"{path} holds {type(value).__name__}", "a JSON object", "fetch it again")
    return value


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor), one at a time. Raises UserError for a damaged file and for what is no tensor of floats."""
    for file in files:
        yield from _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(file) as opened:
        for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
            yield name, _floats(opened.get_tensor(name), name, file)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        got = f"{file.name} needs the package safetensors ({error})"
        raise UserError(f"{got}; expected it; run: pip install 'crystal-trainer[hf]'") from error
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); expected safetensors; fetch it again") from error


def read_safetensors(folder: Path, stem: str) -> tuple[dict[str, Lazy], dict[str, str]]:
    """The tensors of `stem`.safetensors or its shards, as float32, and what the headers say besides. Raises as `read_tensors` does."""
    tensors: dict[str, Lazy] = {}
    besides: dict[str, str] = {}
    for file in shard_files(folder, [f"{stem}.safetensors"]):
        with _opened(file) as opened:
            besides |= opened.metadata() or {}
            for name in opened.keys():  # noqa: SIM118
                shape = torch.Size(opened.get_slice(name).get_shape())
                tensors[name] = Lazy(shape, torch.float32, partial(_float32, file, name))
    return tensors, besides


def _float32(file: Path, name: str) -> Tensor:
    with _opened(file) as opened:
        return _floats(opened.get_tensor(name), name, file).float()


def _pickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a .bin file, without running any code in it."""
    records = zipfile.is_zipfile(file)  # torch's format since 1.6; the one before must be read whole
    try:
        found = dict(saved_tensors(file) if records else torch.load(file, weights_only=True, map_location="cpu"))
    except (OSError, UserError):
        raise
    except Exception as error:  # whatever a damaged or a malicious file makes of the unpickler
        why = str(error).split(". ")[0].split("\n")[0]
        raise UserError(f"{file} is not read ({why}); expected tensors and nothing else; fetch it again, or take safetensors") from error
    for name, value in found.items():
        tensor = _floats(value, name, file)
        yield name, read_tensor(file, tensor) if records else tensor


def _floats(value: Any, name: str, file: Path) -> Tensor:
    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
    good = isinstance(value, Tensor) and kind in FLOATS and value.device.type == "cpu" and value.layout == torch.strided
    require(good, f"{file} holds {name}, a {kind}", "float32, bfloat16 or float16", "take the weights before quantisation")
    return value


def saved_tensors(path: Path) -> dict[str, Any]:
    """What torch.save wrote to `path`, as fake tensors: shapes and places in the file, no data.

    torch could map the file instead, but a private mapping of it all counts as memory, which a 7 B model's 26 GB may not be had in.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    version = f"torch {torch.__version__}"
    require(hasattr(torch.UntypedStorage, "_checkpoint_offset"), version, "2.7 or newer", "pip install 'crystal-trainer[hf]'")
    with FakeTensorMode():
        return torch.load(path, weights_only=True, map_location="cpu")


def read_tensor(path: Path, saved: Tensor) -> Tensor:
    """The tensor that one of `saved_tensors(path)` stands for."""
    size = saved.dtype.itemsize
    span = 1 + sum((n - 1) * stride for n, stride in zip(saved.shape, saved.stride(), strict=True))
    data = np.fromfile(path, np.uint8, count=span * size, offset=_place(saved))
    return torch.from_numpy(data).view(saved.dtype).as_strided(saved.shape, saved.stride())


def saved_lazily(path: Path) -> Any:
    """What torch.save wrote to `path`, its tensors Lazy."""
    return tree_map(
        lambda leaf: Lazy(leaf.shape, leaf.dtype, partial(read_tensor, path, leaf)) if isinstance(leaf, Tensor) else leaf,
        saved_tensors(path),
    )


def checkpoint_weights(folder: Path) -> dict[str, Lazy]:
    """`checkpoint.read_weights`, but Lazy."""
    return mdl.weights_in(folder / MDL) if (folder / MDL).exists() else saved_lazily(folder / "weights.pt")


def checkpoint_optimizer(folder: Path) -> dict[str, Any] | None:
    """`checkpoint.read_optimizer`, but Lazy, and None where the checkpoint has weights only."""
    if (folder / MDL).exists():
        return mdl.optimizer_in(folder / MDL)
    return saved_lazily(folder / "optimizer.pt") if (folder / "optimizer.pt").exists() else None


def _place(saved: Tensor) -> int:
    """In bytes from the beginning of the file."""
    storage = saved.untyped_storage()._checkpoint_offset
    assert storage is not None
    return storage + int(saved.storage_offset()) * saved.dtype.itemsize


def write_weights(path: Path, shapes: Mapping[str, Sequence[int]], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """A weights.pt as torch.save would write it, float32, from tensors that come one at a time in any order, each once."""
    places = _reserved(path, {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()})
    with open(path, "r+b") as file:
        for name, tensor in tensors:
            assert tensor.shape == torch.Size(shapes[name]), name
            _put(file, _place(places[name]), tensor, torch.float32)


def write_saved(path: Path, tree: Any) -> None:
    """`tree` as torch.save would write it, its Lazy tensors one at a time."""
    places = _reserved(path, tree)
    with open(path, "r+b") as file:
        for leaf, place in zip(tree_leaves(tree), tree_leaves(places), strict=True):
            if isinstance(leaf, Lazy):
                _put(file, _place(place), leaf.read(), leaf.dtype)


def _reserved(path: Path, tree: Any) -> Any:
    """Write `tree` to `path` without the data of its tensors, meta or Lazy; returns it with `saved_tensors`, which know their places."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fakes = tree_map(lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor | Lazy) else leaf, tree)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(fakes, path)
    return saved_tensors(path)


def write_safetensors(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[Tensor],
    dtype: torch.dtype,
    *,
    stem: str = "model",
    besides: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """`stem`.safetensors, in shards with an index where it is large, from tensors that come one at a time in the order of `shapes`.

    besides: what every file says in its header. By hand, because the package's own writer wants a shard's tensors all at once.
    """
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    shards = _cut(sizes) or [[]]
    whole = f"{stem}.safetensors"
    names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)] if len(shards) > 1 else [whole]
    stream = iter(tensors)
    for file_name, shard in zip(names, shards, strict=True):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"} | dict(besides)}
        end = 0
        for name in shard:
            header[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shapes[name]), "data_offsets": [end, end + sizes[name]]}
            end += sizes[name]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(HEADER.pack(len(text)) + text)
            start = file.tell()
            file.truncate(start + end)
            for name in shard:
                tensor = next(stream)
                assert tensor.shape == torch.Size(shapes[name]), name
                _put(file, start + header[name]["data_offsets"][0], tensor, dtype)
    assert next(stream, None) is None
    if len(shards) > 1:
        placed = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": placed}
        (folder / f"{whole}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _cut(sizes: Mapping[str, int]) -> list[list[str]]:
    """The names in shards of at most SHARD_BYTES, in order; a larger tensor has its own."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _put(file: BinaryIO, offset: int, tensor: Tensor, dtype: torch.dtype) -> None:
    """Write `tensor` at `offset`, unless all of its bits are zero (-0.0 has one): what was never written reads as zeros."""
    bits = torch.atleast_1d(tensor).view(INTEGERS[tensor.dtype.itemsize])
    if bits[:1].any() or bits.any():
        file.seek(offset)
        file.write(tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
