"""Files of tensors. The surprise: safetensors' own package and torch.load are the judges of what is written by hand here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from crystal.config import UserError
from crystal.release import shards
from crystal.release.shards import read_tensors, shard_files, write_safetensors, write_weights


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {f"t{i}": torch.randn(3 + i, 50, generator=generator) for i in range(6)}
    return found | {"zero": torch.zeros(300, 100), "minus": torch.full((300, 100), -0.0), "vector": torch.randn(7, generator=generator)}


def shapes(of: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in of.items()}


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_what_torch_would_have_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    given = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    write_weights(tmp_path / "weights.pt", shapes(given), reversed(given.items()))
    for mapped in (False, True):
        loaded = torch.load(tmp_path / "weights.pt", weights_only=True, mmap=mapped)
        assert list(loaded) == list(given)
        assert all(bits(loaded[name]) == bits(tensor.float()) and type(loaded[name]) is Tensor for name, tensor in given.items())


@pytest.mark.parametrize("shard_bytes", [2 * 10**9, 2000, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_safetensors_are_what_its_package_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", shard_bytes)
    given = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    write_safetensors(tmp_path, shapes(given), iter(given.values()), dtype)
    files = shard_files(tmp_path)
    read: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            here = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)
        assert len(here) == 1 or sum(tensor.nbytes for tensor in here.values()) <= shard_bytes
        read |= here
    assert read.keys() == given.keys() and all(bits(read[name]) == bits(tensor) for name, tensor in given.items())
    assert {name: bits(tensor) for name, tensor in read_tensors(files)} == {name: bits(tensor) for name, tensor in given.items()}
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1) == (shard_bytes < 10**6)
    if index.exists():
        content = json.loads(index.read_text())
        assert content["weight_map"].keys() == given.keys()
        assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in given.values())


def test_zeros_take_no_disk_and_negative_ones_stay_negative(tmp_path: Path) -> None:
    zero, minus = torch.zeros(2048, 2048), torch.full((2048, 2048), -0.0)
    for name, tensor, on_disk in (("zero", zero, 0), ("minus", minus, 2**24)):
        write_weights(tmp_path / name, {"t": tensor.shape}, [("t", tensor)])
        (tmp_path / f"{name}-folder").mkdir()
        write_safetensors(tmp_path / f"{name}-folder", {"t": tensor.shape}, [tensor], torch.float32)
        for path in (tmp_path / name, tmp_path / f"{name}-folder" / "model.safetensors"):
            assert path.stat().st_size >= 2**24
            assert on_disk <= path.stat().st_blocks * 512 < on_disk + 2**17
        assert bits(torch.load(tmp_path / name, weights_only=True)["t"]) == bits(tensor)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("new", [True, False])
def test_no_code_is_run(tmp_path: Path, new: bool) -> None:
    trap, file = tmp_path / "sprung", tmp_path / "pytorch_model.bin"
    torch.save({"t": torch.ones(3), "trap": Trap(trap)}, file, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match="pytorch_model.bin is not read .*; expected tensors and nothing else; "):
        list(read_tensors([file]))
    assert not trap.exists()
    torch.load(file, weights_only=False)
    assert trap.exists(), "it is a real trap"


def test_views_are_read_as_they_were_saved(tmp_path: Path) -> None:
    base = torch.randn(12, 10, 4)
    views = {"whole": base, "again": base, "turned": base.mT, "rows": base[3:7], "strided": base[1::3, ::2, 1:], "one": base[2, 2, 2:3]}
    torch.save(views, tmp_path / "views.bin")
    read = dict(read_tensors([tmp_path / "views.bin"]))
    assert read.keys() == views.keys() and all(torch.equal(read[name], view) for name, view in views.items())


def test_the_old_format_is_read_too(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert {name: bits(tensor) for name, tensor in read_tensors([tmp_path / "old.bin"])} == {
        name: bits(tensor) for name, tensor in tensors().items()
    }


@pytest.mark.parametrize("content", [b"", b"nonsense", "cut"], ids=str)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes | str) -> None:
    file = tmp_path / name
    if content == "cut":
        if name.endswith("bin"):
            torch.save(tensors(), file)
        else:
            write_safetensors(tmp_path, shapes(tensors()), tensors().values(), torch.float32)
        content = file.read_bytes()[:-1000]
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is (not read|damaged) .*; expected .*; fetch it again"):
        list(read_tensors([file]))


@pytest.mark.parametrize(
    "value",
    [3, "text", torch.ones(3, dtype=torch.int8), torch.ones(2, 2).to_sparse(), torch.empty(2, device="meta"), [torch.ones(2)]],
    ids=str,
)
def test_what_is_no_float_tensor_is_refused(tmp_path: Path, value: object) -> None:
    torch.save({"odd": value}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin holds odd, .*; expected float32, bfloat16 or float16; "):
        list(read_tensors([tmp_path / "pytorch_model.bin"]))


def test_safetensors_are_preferred_and_whole_files_to_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights; expected model.safetensors or pytorch_model.bin"):
        shard_files(tmp_path)
    (tmp_path / "a.bin").touch()
    for name, expected in (("pytorch_model.bin", "a.bin"), ("model.safetensors", "b.safetensors")):
        (tmp_path / expected).touch()
        (tmp_path / f"{name}.index.json").write_text(json.dumps({"weight_map": {"x": expected, "y": expected}}))
        assert shard_files(tmp_path) == [tmp_path / expected]
        (tmp_path / name).touch()
        assert shard_files(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ('{"weight_map": {"x": "gone.bin"}}', "has no gone.bin; expected every file that"), ('{"weight_map": {}}', "names no files"),
        ("{}", "names no files"), ("[]", "holds list"), ("{", "cannot be read"), ('{"weight_map": 3}', "names no files"),
    ],
)  # fmt: skip
def test_a_bad_index(tmp_path: Path, index: str, words: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(UserError, match=words):
        shard_files(tmp_path)


STREAMS = """
import resource, sys
from pathlib import Path
from crystal.config import ModelConfig
from crystal.release import hf
from tests.release.sevenb import write_sparse
for n_layers in (2, 8):
    root = Path(sys.argv[1]) / str(n_layers)
    root.mkdir()
    config = ModelConfig("wide", d_model=1024, n_layers=n_layers, n_heads=8, d_ffn=2730, vocab_size=1024, seq_len=64)
    write_sparse(root / "published", config, n_shards=n_layers)
    hf.import_checkpoint(root / "published", root / "checkpoint", tokenizer=None)
    hf.export_crystalcoder(root / "checkpoint", root / "again", dtype="float32")
    hf.export_stock(root / "checkpoint", root / "stock", dtype="bfloat16")
    print((root / "checkpoint" / "weights.pt").stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The peak of one process that imports and exports a model of 2 layers and then one of 8, in shards of a layer each."""
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", STREAMS, tmp_path], capture_output=True, text=True, cwd=root, timeout=300)
    assert finished.returncode == 0, finished.stderr
    small, peak_of_small, large, peak = map(int, finished.stdout.split())
    assert large - small > 0.3e9 and peak - peak_of_small < 0.1e9, finished.stdout
