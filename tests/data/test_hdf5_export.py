"""Rows as HDF5 for ModelZoo: what is written is what is trained on, and what was read, bit for bit.

The surprise: nothing here trusts the exporter to read; the files are read by h5py alone, or adopted as anybody's.
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from crystal.data import hdf5_export
from crystal.data.adopt import adopt
from crystal.data.fim import unpermute_row
from crystal.data.hdf5_export import by_entry, estimated_bytes, in_order, write_folders
from crystal.data.loader import Batch, Change, Entry, Loader, resolve_entries
from crystal.data.shards import Prepared
from tests.data.conftest import SEQ_LEN as T
from tests.data.conftest import VOCAB
from tests.stages.released import PHASES, needs_released

ENTRIES = [
    Entry("C4", "RedPajamaC4/*", 0.4),
    Entry("Code", "starcoder/*", 0.5, fim=True, slice=(0.1, 0.9)),
    Entry("Css", "starcoder/css", 0.1),
]


def quiet(line: str) -> None:
    pass


def loader(prepared: Prepared, entries: list[Entry] = ENTRIES, **changes: object) -> Loader:
    return Loader(prepared, entries, **({"seed": 3, "batch_rows": 8, "fim_rate": 0.9} | changes))  # type: ignore[arg-type]


def stacked(batch: Batch) -> np.ndarray:
    """(B, 3, T), as the files have it."""
    return np.stack([batch.inputs_BT, batch.mask_BT.astype(np.int64), batch.labels_BT], axis=1)


def contents(folder: Path) -> np.ndarray:
    """The rows of a folder as ModelZoo's reader has them: its files by name, one behind the other."""
    found = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            data = file["data"]
            assert file.attrs["n_examples"] == len(data) and data.chunks == (1, *data.shape[1:]) and data.compression == "gzip"
            assert data.dtype == np.int32
            found.append(data[:])
    return np.concatenate(found)


def write_as_modelzoo(path: Path, data: np.ndarray) -> None:
    """As crystalcoder-data-prep's fim_hdf5_stage2.py, and ModelZoo's preprocess_pile.py where the data is a corpus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if data.ndim == 3:
            file.attrs["n_examples"] = len(data)
            file.create_dataset("data", data=data, dtype="i4", chunks=(1, *data.shape[1:]), compression="gzip")
        else:
            file.create_dataset("data", data=data)


def adopted(root: Path, out: Path, like: Prepared) -> Prepared:
    """All rows, none held out."""
    return adopt(
        root, out, seq_len=T, tokenizer=like.tokenizer_path, vocab_size=VOCAB, holdout=0.0, valid_rows=0, label="test", progress=quiet
    )


@contextmanager
def room(n_bytes: int) -> Iterator[None]:
    """A real limit on the size of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def exported(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By entry, for a stage that goes through the code more than once."""
    out = tmp_path_factory.mktemp("exported")
    load = loader(prepared)
    write_folders(load, by_entry(load, n_samples(load)), out, quiet)
    return out


def n_samples(load: Loader) -> int:
    """So many that Code, the second stream, is in its third epoch."""
    return math.ceil(2.2 * load.mixture.streams[1].n_rows / 0.5)


def test_adopted_again_a_stage_has_the_same_batches(prepared: Prepared, exported: Path, tmp_path: Path) -> None:
    ours = loader(prepared)
    again = adopted(exported / "train", tmp_path / "out", prepared)
    entries, _ = resolve_entries([replace(entry, parts=entry.name, slice=(0.0, 1.0)) for entry in ENTRIES], again)
    theirs = loader(again, entries)
    for number, stream in enumerate(ours.mixture.streams):
        n_epochs = len(again.rows(stream.name)) // stream.n_rows
        assert n_epochs == (3 if stream.name == "Code" else 1)
        streams, rows = np.full(stream.n_rows, number), np.arange(stream.n_rows)
        for epoch in range(n_epochs):
            mine = ours.batch_of(ours.read(streams, np.full_like(streams, epoch), rows))
            yours = theirs.batch_of(theirs.read(streams, np.zeros_like(streams), epoch * stream.n_rows + rows))
            np.testing.assert_array_equal(stacked(yours), stacked(mine))
            assert mine.mask_BT.mean() < 1 or not ours.entries[number].fim
    # What is not permuted anew in each epoch has the same order and the same rows by the same seed.
    text = [Entry("C4", "RedPajamaC4/*", 1.0)]
    expected = loader(prepared, text).batches(0, 9)
    for mine, yours in zip(expected, loader(again, [Entry("C4", "C4", 1.0)]).batches(0, 9), strict=True):
        np.testing.assert_array_equal(stacked(yours), stacked(mine))


def test_every_epoch_is_permuted_anew_from_the_same_text(prepared: Prepared, exported: Path) -> None:
    view, pieces = (get("starcoder/*", (0.1, 0.9)) for get in (prepared.rows, prepared.pieces))
    data, n = contents(exported / "train" / "Code"), len(view)
    rows = np.concatenate([data[:, 0], data[:, 2, -1:]], axis=1)
    assert len(rows) == 3 * n and (rows[:n] != rows[n : 2 * n]).any(axis=1).mean() > 0.5
    for k in range(0, 3 * n, 7):
        found, _ = pieces[np.array([k % n])]
        np.testing.assert_array_equal(unpermute_row(rows[k], found["length"].tolist(), prepared.fim_ids), view[np.array([k % n])][0])


def test_the_stream_is_the_order_of_the_samples(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_export, "FILE_ROWS", 100)
    monkeypatch.setattr(hdf5_export, "BLOCK_ROWS", 7)
    load = loader(prepared, changes=[Change(40, (replace(ENTRIES[0], weight=1.0),))])
    write_folders(load, in_order(load, 256), tmp_path, quiet)
    assert [path.name for path in sorted((tmp_path / "train").iterdir())] == [f"data-{k:05d}.h5" for k in range(3)]
    expected = np.concatenate([stacked(batch) for batch in load.batches(0, 32)])
    np.testing.assert_array_equal(contents(tmp_path / "train"), expected)


def test_labels_and_masks(prepared: Prepared, exported: Path) -> None:
    pad, data = prepared.fim_ids.pad, contents(exported / "train" / "Code")
    inputs, mask, labels = data[:, 0], data[:, 1], data[:, 2]
    np.testing.assert_array_equal(labels[:, :-1], inputs[:, 1:])
    np.testing.assert_array_equal(mask, labels != pad)
    assert 0 < mask.mean() < 1
    view = prepared.rows("RedPajamaC4/*")
    last = view[np.arange(len(view))][:, -1]
    np.testing.assert_array_equal(contents(exported / "train" / "C4")[:, 2, -1], last)


def test_held_out_rows_come_along(prepared: Prepared, exported: Path) -> None:
    for source, entry in prepared.valid.items():
        data, rows = contents(exported / "valid" / source), prepared.valid_rows(source)[np.arange(entry["rows"])]
        np.testing.assert_array_equal(data[:, 0], rows[:, :-1])
        np.testing.assert_array_equal(data[:, 2], rows[:, 1:])
        assert data[:, 1].sum() == (rows[:, 1:] != prepared.fim_ids.pad).sum()


def test_their_files_come_back_bit_for_bit(prepared: Prepared, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, VOCAB, (70, 3, T), np.int32)  # labels that no inputs explain, a mask that no padding does
    samples[:, 1] = rng.integers(0, 2, (70, T))
    ids = rng.integers(0, VOCAB, 9 * T + 1, np.uint16)
    for k, (low, high) in enumerate([(0, 30), (30, 70)]):
        write_as_modelzoo(tmp_path / "h5" / "samples" / f"{k}.h5", samples[low:high])
    for k, (low, high) in enumerate([(0, 100), (100, len(ids))]):
        write_as_modelzoo(tmp_path / "h5" / "corpus" / f"{k}.h5", ids[low:high])
    theirs = adopted(tmp_path / "h5", tmp_path / "rows", prepared)
    load = loader(theirs, [Entry("samples", "samples", 0.5), Entry("corpus", "corpus", 0.5)], fim_rate=0.0)
    write_folders(load, by_entry(load, 1000), tmp_path / "out", quiet)
    assert contents(tmp_path / "out" / "train" / "samples").tobytes() == samples.tobytes()
    cut = [[ids[i * T : i * T + T], np.ones(T), ids[i * T + 1 : i * T + T + 1]] for i in range(9)]  # as ModelZoo's reader
    np.testing.assert_array_equal(contents(tmp_path / "out" / "train" / "corpus"), cut)
    again = adopted(tmp_path / "out" / "train", tmp_path / "again", prepared)
    assert len(again.rows("samples")) == 70 and not (tmp_path / "out" / "valid").exists()


def test_sizes_are_said_before(prepared: Prepared, exported: Path) -> None:
    load = loader(prepared)
    for folder in by_entry(load, n_samples(load)):
        size = sum(path.stat().st_size for path in (exported / folder.name).iterdir())
        assert estimated_bytes(load, folder) == pytest.approx(size, rel=0.05, abs=5000)


@pytest.mark.parametrize("n_bytes", [0, 2000, 30_000])
def test_a_full_disk_is_said_once(prepared: Prepared, tmp_path: Path, n_bytes: int, capfd: pytest.CaptureFixture[str]) -> None:
    load = loader(prepared)
    with room(n_bytes), pytest.raises(OSError, match="too large"):
        write_folders(load, in_order(load, 2000), tmp_path, quiet)
    assert capfd.readouterr().err == ""


OURS = ["task=export", "stage=2", f"scale.seq_len={T}", "scale.batch_rows=4", "data.empty_source=redistribute", "tokens=300000"]


@pytest.fixture
def command(prepared: Prepared, tmp_path: Path) -> list[str]:
    return [*OURS, f"data.out={prepared.folder}", f"data.vocab_size={VOCAB}", f"model.vocab_size={VOCAB}", f"out={tmp_path / 'out'}"]


def test_the_command_writes_what_a_modelzoo_user_needs(crystal, command: list[str], prepared: Prepared, tmp_path: Path) -> None:
    said = crystal(*command, "format=hdf5", "dry_run=true")
    assert said.status == 0 and "train/StarCoder: " in said.out and "would export about 0.00" in said.out
    assert not (tmp_path / "out").exists()
    made = crystal(*command, "format=hdf5")
    assert made.status == 0 and made.out.startswith("exported stage 2, "), made.err
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["params.yaml", "tokenizer.json", "train", "valid"]
    params = yaml.safe_load((out / "params.yaml").read_text())
    mixture = {Path(source["data_dir"]): source["weight"] for source in params["train_input"]["mixture"]}
    assert sorted(mixture) == sorted((out / "train").iterdir()) and sum(mixture.values()) == pytest.approx(1)
    assert mixture[out / "train" / "StarCoder"] / mixture[out / "train" / "C4"] == pytest.approx(0.6281175747315507 / 0.09909981505117808)
    valid = params["eval_input"]
    assert sum(len(contents(Path(folder))) for folder in valid["data_dir"]) == valid["batch_size"]
    again = crystal(*command, "format=hdf5")
    assert again.status == 2 and f"out={out} is there already" in again.err


def test_the_command_writes_the_order_of_the_run(crystal, command: list[str], prepared: Prepared, tmp_path: Path) -> None:
    assert crystal(*command, "format=hdf5-stream").status == 0
    train = yaml.safe_load((tmp_path / "out" / "params.yaml").read_text())["train_input"]
    assert (train["data_dir"], train["shuffle"], "mixture" in train) == (str(tmp_path / "out" / "train"), False, False)
    data = contents(tmp_path / "out" / "train")
    assert len(data) % 4 == 0 and (data[:, 0] == prepared.fim_ids.prefix).any()


@needs_released
@pytest.mark.parametrize("layout", ["hdf5", "hdf5-stream"])
def test_params_have_the_keys_of_the_released_files(crystal, command: list[str], layout: str, tmp_path: Path) -> None:
    released = yaml.safe_load((PHASES / "phase2.yaml").read_text())
    assert crystal(*command, f"format={layout}").status == 0
    ours = yaml.safe_load((tmp_path / "out" / "params.yaml").read_text())
    expected = set(released["train_input"]) - ({"mixture"} if layout == "hdf5-stream" else set())
    assert set(ours["train_input"]) - {"data_dir"} == expected
    assert set(ours["eval_input"]) - set(ours["train_input"]) <= {"data_dir"}
    assert ours["train_input"]["data_processor"] == released["train_input"]["data_processor"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stage=all"], "format=hdf5 of the stages 1, 2, 3; expected one stage an export"),
        (["out=null"], "task=export without out"),
        (["data.out=NOWHERE"], "NOWHERE has no manifest.json; expected a folder of prepared data; run task=prepare"),
        (["scale.seq_len=1024"], f"has rows of {T} tokens; expected scale.seq_len=1024"),
        (["attention=document"], "with attention=document; expected attention=full"),
        (["data.empty_source=error"], "has no rows in"),
        (["+stages.2.changes=[{from_step: 3, mixture: {C4: {parts: RedPajamaC4/odd, weight: 1.0}}}]"], "whose mixture changes at step 3"),
        (["format=arrow"], "format=arrow; expected one of hf, crystalcoder, cerebras, crystal, safetensors, params, hdf5, hdf5-stream"),
    ],
)
def test_bad_input(crystal, command: list[str], arguments: list[str], expected: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = crystal(*command, "format=hdf5", *arguments)
    assert result.status == 2 and expected in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_room_is_said_before_and_a_full_disk_leaves_nothing(crystal, command: list[str], tmp_path: Path, monkeypatch) -> None:
    with room(20_000):
        result = crystal(*command, "format=hdf5-stream")
    assert result.status == 2 and result.err.count("\n") == 1 and "the disk is full" in result.err
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
        result = crystal(*command, "format=hdf5")
    assert result.status == 2 and "0.000 GB free for" in result.err and list(tmp_path.iterdir()) == []


def test_without_h5py_one_line_names_the_extra(crystal, command: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    result = crystal(*command, "format=hdf5")
    assert result.status == 2 and "h5py" in result.err and "pip install 'crystal-trainer[mdl]'" in result.err
    assert list(tmp_path.iterdir()) == []
