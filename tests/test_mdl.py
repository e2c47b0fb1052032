"""Files of the Cerebras SDK without the SDK: one that the real SDK wrote, what is written here, damage, a full disk, memory.

The surprise: tests/golden/cstorch.mdl is the real `cstorch.save` of `sample()`; tests/cerebras/test_mdl_sdk.py proves that it still is.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystal import mdl
from crystal.config import UserError

h5py = pytest.importorskip("h5py", reason="needs the extra mdl")
ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "cstorch.mdl"


def sample() -> dict[str, Any]:
    """Every kind of leaf and container, a tensor of several chunks, and values that the SDK links to each other."""
    many = torch.arange(70 * 300, dtype=torch.float32).remainder(7).view(70, 300)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    return {
        "model": OrderedDict({"blocks.0.weight": many, "blocks.0.bias": special, "tied": many}),
        "optimizer": {
            "state": {0: {"exp_avg": many / 3, "beta1_power": torch.tensor(0.9)}, 1: {}},
            "param_groups": [{"params": [0, 1], "lr": torch.tensor(0.25), "betas": (0.9, 0.95), "names": ["a", "b"]}],
        },
        "kinds": [
            special.bfloat16(), special[1:].half(), special.double(), torch.tensor(2.5).bfloat16(), torch.zeros(0, 3), many[:2].T,
            torch.ones(3, 1).expand(3, 4), torch.tensor([True, False]), *(torch.arange(4).to(kind) for kind in INTEGERS),
        ],
        "values": {"none": None, "true": True, "one": 1, "again": 1, "real": 1.0, "inf": float("inf"), "text": "größer", "": {}, "e": []},
        "global_step": 1,
    }  # fmt: skip


INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def read(path: Path) -> Any:
    return loaded(mdl.read(path))


def loaded(tree: Any) -> Any:
    """`tree` with its Lazy tensors read."""
    if isinstance(tree, dict):
        return {key: loaded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(loaded, tree))
    return tree.read() if isinstance(tree, mdl.Lazy) else tree


def same(ours: Any, theirs: Any) -> bool:
    """Equal in every type, dtype, shape and bit; an OrderedDict may come back as a dict."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, torch.Tensor):
        alike = isinstance(ours, torch.Tensor) and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        return alike and np.array_equal(*(np.frombuffer(mdl._bits(x).tobytes(), np.uint8) for x in (ours, theirs)))
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)


def test_what_the_sdk_wrote() -> None:
    tree = read(GOLDEN)
    assert tree.pop("full").equal(torch.full((2, 3), 1.5)), "which the SDK keeps as one number"
    assert tree.pop("pickled") == mdl.Unread("ObjectSerializer")
    assert same(tree, sample())


def test_the_sdk_links_what_is_one_object() -> None:
    """Small ints among them: the step count is a parameter's number, or the other way round."""
    with h5py.File(GOLDEN) as file:
        links = {name: text for name, text in file.attrs.items() if "__LINKED__" in str(text)}
    assert {"model.tied.__metadata__", "global_step.__metadata__", "values.again.__metadata__"} <= links.keys()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    mdl.write(tmp_path / "a.mdl", sample())
    assert same(read(tmp_path / "a.mdl"), sample())
    mdl.write(tmp_path / "b.mdl", mdl.read(tmp_path / "a.mdl"))
    assert same(read(tmp_path / "b.mdl"), sample())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mdl", "b.mdl"]


def test_what_is_written_says_of_a_tensor_what_the_sdk_says(tmp_path: Path) -> None:
    mdl.write(tmp_path / "a.mdl", sample())
    with h5py.File(tmp_path / "a.mdl") as ours, h5py.File(GOLDEN) as theirs:
        names = [name for name in theirs if name in ours]
        assert len(names) > 12
        for name in names:
            mine, real = ours[name], theirs[name]
            said = {key: np.asarray(value).tolist() for key, value in mine.attrs.items() if key != "crc32"}
            assert said == {key: np.asarray(value).tolist() for key, value in real.attrs.items()}
            assert (mine.dtype, mine.shape, mine.chunks, mine._filters) == (real.dtype, real.shape, real.chunks, real._filters)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TENSORS = st.builds(
    lambda kind, shape, seed: torch.randint(0, 2**31, shape, generator=torch.Generator().manual_seed(seed)).to(kind),
    st.sampled_from(list(mdl.NUMBERS)), st.lists(st.integers(0, 4), max_size=3).map(tuple), st.integers(0, 99),
)  # fmt: skip
KEYS = st.integers(0, 9) | st.text(st.characters(codec="ascii", exclude_characters="./\0", exclude_categories=["Nd"]), min_size=1)
TREES = st.dictionaries(KEYS, st.recursive(PLAIN | TENSORS, lambda inner: (
    st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
), max_leaves=8), max_size=4)  # fmt: skip


@given(tree=TREES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_comes_back(tmp_path: Path, tree: dict) -> None:
    path = tmp_path / "any.mdl"
    path.unlink(missing_ok=True)
    mdl.write(path, tree)
    assert same(read(path), tree)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and text.count("; ") == 2 and "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("mark", [False, None], ids=["false", "absent"])
def test_a_partial_file_is_refused(tmp_path: Path, mark: bool | None) -> None:
    path = tmp_path / "part.mdl"
    path.write_bytes(GOLDEN.read_bytes())
    with h5py.File(path, "a") as file:
        del file.attrs["__SUCCESS__"]
        if mark is not None:
            file.attrs["__SUCCESS__"] = mark
    refused(path, "was not written to its end")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("wrote", ["sdk", "crystal"])
def test_a_truncated_file_is_refused(tmp_path: Path, wrote: str, share: float) -> None:
    path = tmp_path / "cut.mdl"
    mdl.write(path, sample())
    whole = (GOLDEN if wrote == "sdk" else path).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "cannot be read")


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone.mdl", "No such file")
    torch.save({}, tmp_path / "torch.mdl")
    refused(tmp_path / "torch.mdl", "cannot be read")
    with h5py.File(tmp_path / "data.mdl", "w") as file:
        file["data"] = np.zeros(3)
    refused(tmp_path / "data.mdl", "is of format None; expected 0.5")
    (tmp_path / "old.mdl").write_bytes(GOLDEN.read_bytes())
    with h5py.File(tmp_path / "old.mdl", "a") as file:
        file.attrs["__version__"] = 0.4
    refused(tmp_path / "old.mdl", "is of format 0.4")


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    """In a file of Crystal's: wherever it is, the file is refused, or everything in it is read as it was."""
    tree = {
        "model": {f"w{i}": torch.randn(10, 12, generator=torch.Generator().manual_seed(i)) for i in range(3)},
        "n": [7, (2.5, "x", None)],
    }
    tree["scalar"] = torch.tensor(0.95)
    path, flips = tmp_path / "flip.mdl", np.random.default_rng(0)
    mdl.write(path, tree)
    whole, outcomes = path.read_bytes(), []
    for place in flips.choice(len(whole), 300, replace=False):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(flips.integers(8))]) + whole[place + 1 :])
        try:
            assert same(read(path), tree), f"a bit of byte {place}"
            outcomes.append("empty space")
        except UserError as error:
            assert str(path) in str(error)
            outcomes.append("refused")
    assert outcomes.count("refused") > 30 and outcomes.count("empty space") > 30


@pytest.mark.parametrize("room", [0, 2000, 300_000, 1_900_000])
def test_a_full_disk_is_said_once_and_leaves_nothing(tmp_path: Path, room: int, capfd: pytest.CaptureFixture[str]) -> None:
    """A real limit on file sizes: HDF5 must neither lose the error nor say it again for each of its buffers."""
    tree = {f"w{i}": torch.randn(250, 200) for i in range(10)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            mdl.write(tmp_path / "full.mdl", tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr().err == ""
    mdl.write(tmp_path / "full.mdl", tree)


def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    mdl.write(tmp_path / "a.mdl", {"a": 1})

    def fails() -> torch.Tensor:
        raise UserError("damaged; expected better; mend it")

    with pytest.raises(UserError, match="damaged"):
        mdl.write(tmp_path / "a.mdl", {"a": torch.ones(3), "b": mdl.Lazy(torch.Size([3]), torch.float32, fails)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.mdl"] and read(tmp_path / "a.mdl") == {"a": 1}


def test_without_the_packages_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"h5py .*pip install 'crystal-trainer\[mdl\]'"):
        mdl.read(GOLDEN)


STREAMS = """
import resource, sys
from functools import partial
from pathlib import Path
import numpy as np, torch
from crystal import mdl
rng = np.random.default_rng(0)
def made(i):
    return torch.from_numpy(rng.standard_normal((1000, 2000), np.float32))
for n in (5, 60):
    path = Path(sys.argv[1]) / "large.mdl"
    mdl.write(path, {str(i): mdl.Lazy(torch.Size((1000, 2000)), torch.float32, partial(made, i)) for i in range(n)})
    tree = mdl.read(path)
    mdl.write(path.with_name("again.mdl"), tree)
    for tensor in tree.values():
        tensor.read()
    print(path.stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """The peak of one process that writes, copies and reads 5 tensors of 8 MB and then 60."""
    finished = subprocess.run([sys.executable, "-c", STREAMS, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert finished.returncode == 0, finished.stderr
    small, peak_of_small, large, peak = map(int, finished.stdout.split())
    assert large - small > 0.4e9 and peak - peak_of_small < 0.05e9, finished.stdout


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.999, 0.0, 0.123456789])
def test_beta_powers_are_multiplied_up(beta: float) -> None:
    power = torch.tensor(beta)
    for updates in range(3000):
        if updates in (0, 1, 2, 86, 1000, 2999):
            ours = mdl.beta_power(beta, updates)
            assert ours.dtype == torch.float32 and ours.shape == () and ours.equal(power)
        power *= beta
    assert mdl.beta_power(beta, 300_000).item() < 1e-37


def test_another_layout_is_refused(tmp_path: Path) -> None:
    for tree in ([1], {"weights": torch.ones(2)}, {"model": {"a": 1}}, {"model": torch.ones(2)}):
        mdl.write(tmp_path / "a.mdl", tree)
        with pytest.raises(UserError, match=r"a\.mdl holds no tensors as its model; expected"):
            mdl.weights_in(tmp_path / "a.mdl")
    mdl.write(tmp_path / "a.mdl", {"model": {"a": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": []}})
    with pytest.raises(UserError, match=r"a\.mdl cannot be read \(KeyError: 'adam_step'\)"):
        mdl.optimizer_in(tmp_path / "a.mdl")
