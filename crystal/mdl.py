"""Checkpoints of the Cerebras SDK (`cstorch.save`, files *.mdl), read and written without the SDK, one tensor at a time.

Such a file is HDF5: every tensor a dataset under its dotted path, LZ4-compressed, bfloat16 as the int16 of the same bits; the tree, what
each leaf is, and plain values stand as JSON in the root's attributes. The surprise: the SDK keeps a value once that it finds twice, by
identity, and in Python equal small ints are one object: a step count may be a link to a parameter's number. A link is an equal value and
means nothing more.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crystal.config import UserError, require
from crystal.data.disk import Disk
from crystal.data.optional import need

VERSION = 0.5  # of the format, by the SDK 2.10
TAKE_ANOTHER = "take another checkpoint"
SPEC, META, SUCCESS, CHECKSUM = "__spec__", "__metadata__", "__SUCCESS__", "__crystal_crc32__"
# The SDK's number of each dtype (its RtFxProto).
NUMBERS = {
    torch.bool: 1, torch.int16: 3, torch.int32: 4, torch.int64: 5, torch.uint8: 6,
    torch.float16: 10, torch.float32: 11, torch.float64: 12, torch.bfloat16: 15,
}  # fmt: skip
DTYPES = {str(dtype): dtype for dtype in NUMBERS}
MAPPINGS, SEQUENCES = ("builtins.dict", "collections.OrderedDict"), {"builtins.list": list, "builtins.tuple": tuple}
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Lazy:
    """A tensor that is somewhere else until `read()`, which gives a new one each time."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Unread:
    """A leaf that only the SDK reads: a pickle, or a reference to another file. `kind` is the SDK's class."""

    kind: str


def read(path: Path) -> Any:
    """The tree that was saved: dicts, lists, tuples and plain values; tensors are Lazy, and what only the SDK reads is Unread.

    Raises UserError naming the file, here or when a tensor is read, where it was not written to its end or is damaged. In what Crystal
    wrote every damage is found; in what the SDK wrote only what HDF5 or LZ4 stumble over, for it keeps no checksums.
    """
    with _refusing(path), _opened(path) as file:
        attributes = dict(file.attrs)
        texts = {name: text for name, text in attributes.items() if isinstance(text, str)}
        version, checksum = attributes.get("__version__"), _checksum(texts)
        require(version == VERSION, f"{path} is of format {version}", f"{VERSION}, as cstorch.save writes it", TAKE_ANOTHER)
        require(bool(attributes.get(SUCCESS)), f"{path} was not written to its end", "a whole file", TAKE_ANOTHER)
        require(attributes.get(CHECKSUM, checksum) == checksum, f"{path} is damaged", "what was written", TAKE_ANOTHER)
        protocol, spec = json.loads(json.loads(texts[SPEC])[1])
        require(protocol == 1, f"{path} holds a tree by protocol {protocol}", "1, torch 2.4's", TAKE_ANOTHER)
        return _grown(spec, [], lambda key: _leaf(path, texts, key))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes of HDF5, LZ4 and JSON becomes a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = str(error).split(chr(10))[0]
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {why}); expected a whole file of cstorch.save; {TAKE_ANOTHER}"
        ) from error


def packages() -> tuple[Any, Any]:
    """h5py and hdf5plugin, with which, once imported, HDF5 knows LZ4. Raises UserError where they are not installed."""
    return need("h5py", extra="mdl"), need("hdf5plugin", extra="mdl")


def _opened(path: Path) -> Any:
    h5py, _ = packages()
    return h5py.File(path, "r", locking="best-effort")


def _checksum(texts: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(sorted(texts.items())).encode())


def _grown(spec: Mapping[str, Any], place: list[str], leaf: Callable[[str], Any]) -> Any:
    """The containers of torch's serialised pytree, with `leaf(dotted path)` for every leaf."""
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        return leaf(".".join(place))
    keys = json.loads(spec["context"]) if kind in MAPPINGS else range(len(children))
    values = [_grown(child, [*place, str(key)], leaf) for key, child in zip(keys, children, strict=True)]
    return dict(zip(keys, values, strict=True)) if kind in MAPPINGS else SEQUENCES[kind](values)


def _leaf(path: Path, texts: Mapping[str, str], key: str) -> Any:
    about = json.loads(texts[f"{key}.{META}"]).get(f"{key}.{META}", {})
    match kind := about.get("__TYPE__", "a nested object"):
        case "LinkedObject":
            return _leaf(path, texts, about["key"])
        case "NoneSerializer":
            return None
        case "ScalarSerializer":
            return about["scalar_value"]
        case "StringSerializer":
            return about["string_value"]
        case "DeferredFullTensor":  # one value everywhere
            shape, dtype, value = torch.Size(about["shape"]), DTYPES[about["dtype"]], about["fill_value"] or 0
            return Lazy(shape, dtype, lambda: torch.full(shape, value, dtype=dtype))
        case "TorchTensorSerializer" if about.get("__NUMPY__"):
            shape, dtype, crc32 = torch.Size(about["shapes"][0]), DTYPES[about["dtypes"][0]], about.get("crc32")
            return Lazy(shape, dtype, lambda: _tensor(path, key, shape, dtype, crc32))
    return Unread(kind)


def _tensor(path: Path, key: str, shape: torch.Size, dtype: torch.dtype, crc32: int | None) -> Tensor:
    with _refusing(path), _opened(path) as file:
        array = np.asarray(file[key][()])
        got, expected = f"{array.dtype} {array.shape}", f"{_bits(torch.empty(0, dtype=dtype)).dtype} {tuple(shape)}"
        whole = got == expected and crc32 in (None, zlib.crc32(array.data))
        require(whole, f"{path} is damaged in {key}", f"{expected} as it was written", TAKE_ANOTHER)
        return torch.from_numpy(array).view(dtype)


def _bits(tensor: Tensor) -> np.ndarray:
    """As the file has them: numpy has no bfloat16."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).contiguous().numpy()


def write(path: Path, tree: Any) -> None:
    """What `cstorch.save` would write and `cstorch.load` reads. Tensors may be Lazy: one is in memory at a time.

    tree: dicts with keys that are int or str, lists, tuples; tensors; None, bool, int, float, str. `path` is there whole or not at all;
    raises OSError where the disk is full.
    """
    h5py, hdf5plugin = packages()
    lz4 = hdf5plugin.LZ4()
    temporary = path.with_name(f".{path.name}.tmp")
    texts = {SPEC: _spec(tree), "__cstorch_version__": "2.10.0"}
    try:
        with Disk(temporary, "w+b") as disk, h5py.File(disk, "w") as file:
            for key, value in _leaves(tree, []):
                assert f"{key}.{META}" not in texts, f"two leaves are {key}"
                about = _write_leaf(file, key, value, lz4)
                texts[f"{key}.{META}"] = json.dumps({SPEC: json.loads(_spec({key: None})), "__objects__": [key], f"{key}.{META}": about})
                if disk.error is not None:
                    break
            file.attrs.update(texts | {"__version__": VERSION, CHECKSUM: _checksum(texts), SUCCESS: True})
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _spec(tree: Any) -> str:
    """The tree without its leaves, as torch 2.4 serialises a pytree and the SDK wraps that."""

    def pruned(tree: Any) -> dict[str, Any]:
        kind, keys, children = None, None, []
        if isinstance(tree, dict):
            kind, keys, children = "builtins.dict", json.dumps(list(tree)), list(tree.values())
        elif isinstance(tree, list | tuple):
            kind, keys, children = f"builtins.{type(tree).__name__}", "null", list(tree)
        return {"type": kind, "context": keys, "children_spec": [pruned(child) for child in children]}

    return json.dumps([None, json.dumps([1, pruned(tree)])])


def _leaves(tree: Any, place: list[str]) -> Iterator[tuple[str, Any]]:
    """Every leaf under its dotted path."""
    if isinstance(tree, dict | list | tuple):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(child, [*place, str(key)])
    else:
        yield ".".join(place), tree


def _write_leaf(file: Any, key: str, value: Any, lz4: Mapping[str, Any]) -> dict[str, Any]:
    """Write a leaf; returns what the file says of it."""
    if isinstance(value, Lazy | Tensor):
        tensor = value.read() if isinstance(value, Lazy) else value
        array = _bits(tensor.detach())
        about = {
            "__TORCH__": True, "__NUMPY__": True, "__TYPE__": "TorchTensorSerializer", "compressed": False, "crc32": zlib.crc32(array.data),
            "shapes": [list(tensor.shape)], "dtypes": [str(tensor.dtype)], "rtfx_dtypes": [NUMBERS[tensor.dtype]],
        }  # fmt: skip
        file.create_dataset(key, data=array, **(lz4 if array.shape else {})).attrs.update(about)
        return about
    assert value is None or isinstance(value, bool | int | float | str), f"{key} is a {type(value).__name__}"
    if value is None:
        return {"__TYPE__": "NoneSerializer", "__NONE__": True}
    kind, name = ("StringSerializer", "string_value") if isinstance(value, str) else ("ScalarSerializer", "scalar_value")
    return {name: value, "__TYPE__": kind, "__NONE__": True}


def beta_power(beta: float, updates: int) -> Tensor:
    """What the SDK's AdamW holds after so many updates, 0-d float32: beta^(updates + 1), each time rounded as on its CPU."""
    return torch.from_numpy(np.cumprod(np.full(updates + 1, beta, np.float32)))[-1].clone()


def powers(betas: tuple[float, float], updates: int) -> dict[str, Tensor]:
    """`beta_power` of both betas, by the SDK's names."""
    return {f"beta{i}_power": beta_power(beta, updates) for i, beta in enumerate(betas, 1)}


def weights_in(path: Path) -> dict[str, Lazy]:
    """The model in a file of Crystal's layout (see `laid_out`), by Crystal's names. Raises UserError where it has another."""
    tree = read(path)
    model = tree.get("model") if isinstance(tree, dict) else None
    good = isinstance(model, dict) and all(isinstance(value, Lazy) for value in model.values())
    require(good, f"{path} holds no tensors as its model", "what Crystal's Cerebras backend saves", TAKE_ANOTHER)
    assert isinstance(model, dict)
    return model


def optimizer_in(path: Path) -> dict[str, Any] | None:
    """The AdamW in a file of Crystal's layout, as an optimizer.pt keeps it with Lazy tensors; None: it has none.

    AdamW's `step` stands for both of the SDK's powers, and where it is 0 there is no state.
    """
    tree = read(path)
    if "optimizer" not in tree:
        return None
    with _refusing(path):
        state, groups, updates = tree["optimizer"]["state"], tree["optimizer"]["param_groups"], tree["adam_step"]
        names = {name: i for group in groups for i, name in zip(group["params"], group["names"], strict=True)}
        step = Lazy(torch.Size(()), torch.float32, lambda: torch.tensor(float(updates)))
        adamw = {name: {"step": step} | {key: state[i][key] for key in MOMENTS} for name, i in names.items()}
        return {"step_count": tree["global_step"], "adamw": adamw if updates else {}}


def laid_out(
    weights: Mapping[str, Lazy], optimizer: Mapping[str, Any] | None, groups: list[dict], betas: tuple[float, float]
) -> dict[str, Any]:
    """The tree that Crystal's Cerebras backend saves, but for what only the SDK knows: schedulers, loss scale, the data's position.

    {"model": {name: tensor}, "optimizer": AdamW's own state_dict, its groups with "names" beside "params", "global_step": the updates of
    this stage, "adam_step": AdamW's, more where a stage carries it on}. optimizer: as an optimizer.pt keeps it, with Lazy tensors; None:
    the tree has the model only. groups: crystal.optim's, of all parameters.
    """
    if optimizer is None:
        return {"model": dict(weights)}
    adamw, names = optimizer["adamw"], [name for group in groups for name in group["names"]]
    (updates,) = {int(state["step"].read()) for state in adamw.values()} or {0}
    assert adamw.keys() in (set(), set(names)), "every update is one of all parameters"
    power = powers(betas, updates)
    numbers = iter(range(len(names)))
    param_groups = [
        {key: group[key] for key in ("names", "lr_mult", "weight_decay", "eps")}
        | {"adjust_learning_rate": group["lr_mult"], "lr": 0.0, "betas": betas, "l2_regularization_rate": 0.0}
        | {"correct_bias": True, "amsgrad": False, "params": [next(numbers) for _ in group["names"]]}
        for group in groups
    ]
    moments = [{key: adamw[name][key] if adamw else _zeros(weights[name]) for key in MOMENTS} for name in names]
    return {
        "model": dict(weights),
        "optimizer": {"state": {i: own | power for i, own in enumerate(moments)}, "param_groups": param_groups},
        "global_step": optimizer["step_count"],
        "adam_step": updates,
    }


def _zeros(like: Lazy) -> Lazy:
    # By numpy: glibc does not give torch's aligned blocks to torch again where HDF5 has small ones beside them, and memory grows.
    return Lazy(like.shape, torch.float32, lambda: torch.from_numpy(np.zeros(like.shape, np.float32)))
