"""HDF5 files read where they are: what ModelZoo's reader would give, bit for bit, in Crystal's own order.

The surprise: most files here hold the rows of the prepared corpus, so what is expected of them is known from another path.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from crystal.config import UserError
from crystal.data.adopt import adopt
from crystal.data.fim import DRAWS, FimIds, permute_row, split_pieces
from crystal.data.hdf5 import OPEN_FILES, Hdf5Rows
from crystal.data.loader import Batch, Entry, Loader, resolve_entries, to_batch
from crystal.data.ngram import ngram_losses
from crystal.data.shards import Prepared
from crystal.data.tokenizer import load_tokenizer
from tests.data.conftest import SEQ_LEN as T
from tests.data.conftest import VOCAB

ENTRIES = [Entry("c4", "RedPajamaC4/even", 0.4), Entry("code", "starcoder/*", 0.6)]
SOURCES = ("CommonCrawl", "C4", "Github", "ArXiv", "Book", "Wikipedia", "StackExchange")
TEXT = [f"RedPajama{source}/{half}" for source in SOURCES for half in ("even", "odd")]
CODE = [f"starcoder/{language}" for language in ("python", "html", "javascript", "css")]


def as_samples(rows: np.ndarray, pad_id: int) -> np.ndarray:
    """Rows (N, T + 1) in ModelZoo's layout (N, 3, T)."""
    return np.stack([rows[:, :-1], rows[:, 1:] != pad_id, rows[:, 1:]], axis=1).astype(np.int32)


def write_h5(file: Path, data: np.ndarray, *, n_examples: int | None = None, **options: object) -> None:
    """As crystalcoder-data-prep writes it: chunks of one row, gzip."""
    file.parent.mkdir(parents=True, exist_ok=True)
    chunks = (1, *data.shape[1:]) if data.ndim == 3 else None
    with h5py.File(file, "w") as h5:
        h5.create_dataset("data", data=data, **({"chunks": chunks, "compression": "gzip"} | options))
        if n_examples is not None:
            h5.attrs["n_examples"] = n_examples


def adopted(root: Path, out: Path, tokenizer: Path, **changes: object) -> Prepared:
    settings = {"seq_len": T, "tokenizer": tokenizer, "vocab_size": VOCAB, "holdout": 0.1, "valid_rows": 3, "label": "test"}
    return adopt(root, out, **({"progress": lambda line: None} | settings | changes))  # type: ignore[arg-type]


def loader(prepared: Prepared, **changes: object) -> Loader:
    return Loader(prepared, **({"entries": ENTRIES, "seed": 0, "batch_rows": 8} | changes))  # type: ignore[arg-type]


def stacked(batch: Batch) -> np.ndarray:
    """(B, 3, T), as the files have it."""
    return np.stack([batch.inputs_BT, batch.mask_BT.astype(np.int64), batch.labels_BT], axis=1)


@pytest.fixture(scope="module")
def samples(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared corpus's train rows, each part as two files of samples; n_examples in every other one."""
    root = tmp_path_factory.mktemp("samples")
    for part in prepared.train:
        view = prepared.rows(part)
        data = as_samples(view[np.arange(len(view))], prepared.fim_ids.pad)
        half = len(data) // 3
        write_h5(root / part / "data-00000.h5", data[:half], n_examples=half)
        write_h5(root / part / "data-00001.h5", data[half:])
    return root


@pytest.fixture(scope="module")
def finished(samples: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return adopted(samples, tmp_path_factory.mktemp("finished") / "out", prepared.tokenizer_path)


def test_batches_are_what_the_files_hold_with_their_own_masks(prepared: Prepared, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, VOCAB, (50, 3, T), np.int32)
    data[:, 1] = rng.integers(0, 2, (50, T))  # a mask that no padding explains
    write_h5(tmp_path / "data" / "a" / "1.h5", data[:20])
    write_h5(tmp_path / "data" / "a" / "2.h5", data[20:])
    adopted_data = adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path, holdout=0.01)
    load = loader(adopted_data, entries=[Entry("a", "a", 1.0)])
    _, _, rows = load.mixture.locate(np.arange(100))
    assert sorted(rows[:50]) == list(range(50))
    for step, batch in enumerate(load.batches(0, 12)):
        np.testing.assert_array_equal(stacked(batch), data[rows[8 * step : 8 * step + 8]])
        assert [array.dtype for array in (batch.inputs_BT, batch.labels_BT, batch.mask_BT)] == [np.int64, np.int64, np.float32]


def test_the_same_rows_give_the_batches_of_shards(samples: Path, prepared: Prepared, tmp_path: Path) -> None:
    whole = adopted(samples, tmp_path / "out", prepared.tokenizer_path, holdout=1e-6)
    assert {name: entry["rows"] for name, entry in whole.train.items()} == {name: entry["rows"] for name, entry in prepared.train.items()}
    entries = [*ENTRIES[:1], Entry("code", "starcoder/*", 0.6, slice=(0.2, 0.7))]
    for ours, theirs in zip(loader(whole, entries=entries).batches(8, 9), loader(prepared, entries=entries).batches(8, 9), strict=True):
        np.testing.assert_array_equal(stacked(ours), stacked(theirs))


def test_a_corpus_is_cut_into_overlapping_rows_across_its_files(prepared: Prepared, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, VOCAB, 10 * T, np.uint16)
    for k, (start, end) in enumerate([(0, 150), (150, 150), (150, 160), (160, 10 * T)]):  # a row may span three files
        write_h5(tmp_path / "data" / f"{k}.h5", ids[start:end])
    view = adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path, holdout=0.01).rows(".")
    assert len(view) == 9  # the tenth would need one token more
    expected = [[ids[i * T : i * T + T], np.ones(T), ids[i * T + 1 : i * T + T + 1]] for i in range(9)]
    np.testing.assert_array_equal(view[np.arange(9)], expected)
    np.testing.assert_array_equal(view[np.array([7, 2, 2])], [expected[7], expected[2], expected[2]])


def order_hash(load: Loader, first: int, n_steps: int) -> str:
    return hashlib.sha256(b"".join(stacked(batch).tobytes() for batch in load.batches(first, n_steps))).hexdigest()


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_the_order_does_not_depend_on_ranks_or_on_where_it_is_resumed(finished: Prepared, n_ranks: int) -> None:
    ranks = [loader(finished, rank=rank, n_ranks=n_ranks).batches(24, 5) for rank in range(n_ranks)]
    joined = b"".join(np.concatenate([stacked(cut) for cut in cuts]).tobytes() for cuts in zip(*ranks, strict=True))
    alone = [stacked(batch).tobytes() for batch in loader(finished).batches(0, 8)]
    assert hashlib.sha256(joined).hexdigest() == hashlib.sha256(b"".join(alone[3:])).hexdigest() == order_hash(loader(finished), 24, 5)


def test_the_last_rows_of_each_part_are_held_out_and_counted(finished: Prepared, prepared: Prepared) -> None:
    tokenizer, part = load_tokenizer(prepared.tokenizer_path), "starcoder/python"
    n_rows = len(prepared.rows(part))
    n_valid = min(3, n_rows // 10)
    assert (len(finished.rows(part)), len(finished.valid_rows(part))) == (n_rows - n_valid, n_valid) and n_valid > 0
    held = as_samples(prepared.rows(part)[np.arange(n_rows - n_valid, n_rows)], prepared.fim_ids.pad)
    np.testing.assert_array_equal(finished.valid_rows(part)[np.arange(n_valid)], held)
    counts, labels = finished.valid[part], held[:, 2][held[:, 1] == 1]
    assert counts["tokens"] == len(labels) and counts["documents"] == (labels == tokenizer.eos_id).sum()
    assert counts["text_bytes"] == len(tokenizer.decode(labels).encode())
    assert finished.train[part]["tokens"] + len(labels) == (prepared.rows(part)[np.arange(n_rows)][:, 1:] != prepared.fim_ids.pad).sum()


def test_pieces_know_their_bytes(prepared: Prepared) -> None:
    tokenizer, text = load_tokenizer(prepared.tokenizer_path), "def kato(x):\n    return 'ö€😀' + \"  two  \" # </s>\n"
    assert tokenizer.text_bytes()[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.text_bytes()[[tokenizer.eos_id, *tokenizer.special.values()]].sum() == 0


def test_only_a_manifest_is_written_and_the_files_may_move(samples: Path, prepared: Prepared, tmp_path: Path) -> None:
    root, said = tmp_path / "data", []
    root.symlink_to(samples)
    first = adopted(root, tmp_path / "out", prepared.tokenizer_path, progress=said.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "tokenizer.json"]
    assert f"{root}/starcoder/css: {first.train['starcoder/css']['rows']} rows" in " ".join(said)
    root.rename(tmp_path / "moved")
    again = adopted(tmp_path / "moved", tmp_path / "out", prepared.tokenizer_path, progress=said.append)
    assert "prepared before" in said[-1] and again.fingerprint() == first.fingerprint()
    assert loader(Prepared.open(tmp_path / "out", verify=True)).batch(0, 4).labels_BT.shape == (4, T)


def test_a_changed_file_is_refused(finished: Prepared, prepared: Prepared, tmp_path: Path) -> None:
    data = np.ones((9, 3, T), np.int32)
    file = tmp_path / "data" / "a" / "x.h5"
    write_h5(file, data, compression=None)
    before = adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path).fingerprint()
    data[4, 0, 0] = 7
    write_h5(file, data, compression=None)
    Prepared.open(tmp_path / "out", verify=False)
    with pytest.raises(UserError, match="x.h5 has changed; expected the bytes of crc32"):
        Prepared.open(tmp_path / "out", verify=True)
    assert adopted(tmp_path / "data", tmp_path / "other", prepared.tokenizer_path).fingerprint() != before
    write_h5(file, data[:8], compression=None)
    with pytest.raises(UserError, match="x.h5 has [0-9]+ bytes; expected"):
        Prepared.open(tmp_path / "out", verify=False)
    with pytest.raises(UserError, match=r"prepared otherwise \(spec.readers.0.files.a/x.h5 is"):
        adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path)


def test_the_fingerprint_tells_how_much_is_held_out(samples: Path, finished: Prepared, tmp_path: Path) -> None:
    fewer = adopted(samples, tmp_path / "out", finished.tokenizer_path, valid_rows=2)
    assert fewer.fingerprint() != finished.fingerprint()


GOOD = np.ones((4, 3, T), np.int32)


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (np.ones((4, 3, 99), np.int32), {}, rf"bad.h5 has data of shape \(4, 3, 99\); expected \(rows, 3, {T}\).*scale.seq_len=99"),
        (np.ones((4, 5, T), np.int32), {}, rf"bad.h5 has data of shape \(4, 5, {T}\)"),
        (np.ones((4, 3, T), np.float32), {}, "bad.h5 has data of type float32; expected integers"),
        (np.full((4, 3, T), VOCAB, np.int32), {}, f"bad.h5 holds ids from {VOCAB} to {VOCAB} at row 0; expected 0 to {VOCAB - 1}"),
        (-GOOD, {}, "bad.h5 holds ids from -1 to -1"),
        (2 * GOOD, {}, "bad.h5 has a loss mask at row 0 that is not only 0 and 1"),
        (np.full(500, VOCAB, np.uint16), {}, "bad.h5 holds ids from"),
        (GOOD, {"n_examples": 5}, "bad.h5 has n_examples 5 and 4 rows; expected the same number"),
    ],
)
def test_what_no_model_can_be_trained_on_is_refused(prepared: Prepared, tmp_path: Path, data, options, expected: str) -> None:
    write_h5(tmp_path / "data" / "bad.h5", data, **options)
    with pytest.raises(UserError, match=expected):
        adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_broken_files_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "data" / "bad.h5"

    def refused(expected: str, **changes: object) -> None:
        with pytest.raises(UserError, match=expected):
            adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path, **changes)

    refused(r"holds no \*.h5")
    write_h5(file, np.random.default_rng(0).integers(0, 2, (40, 3, T), np.int32))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    refused(r"bad.h5 cannot be read \(.*truncated")
    file.write_bytes(whole[:-3000] + bytes(2000) + whole[-1000:])
    refused(r"bad.h5 cannot be read at row")
    with h5py.File(file, "w") as h5:
        h5["ids"] = GOOD
    refused("bad.h5 has no dataset data")
    write_h5(file, GOOD)
    write_h5(tmp_path / "data" / "corpus.h5", np.ones(500, np.uint16))
    refused("one layout in a folder")
    (tmp_path / "data" / "corpus.h5").unlink()
    write_h5(file, np.stack([np.full((40, T), 3), np.ones((40, T)), np.full((40, T), 1)], axis=1).astype(np.int32))
    refused("have no text by", holdout=0.4)
    refused("the tokenizer .* has 400 ids; expected at most vocab_size 399", vocab_size=399)


def permuted(rows: np.ndarray, rate: float, ids: FimIds) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([permute_row(row, rng.random((len(split_pieces(row, ids)), DRAWS)), rate=rate, spm_rate=0.5, ids=ids) for row in rows])


def test_fim_is_what_the_files_hold(finished: Prepared, prepared: Prepared, tmp_path: Path) -> None:
    entries = [Entry("code", "starcoder/python", 1.0, fim=True)]
    with pytest.raises(UserError, match="entry code has fim: true, but no row of starcoder/python holds <fim_prefix>"):
        resolve_entries(entries, finished)
    rows = prepared.rows("starcoder/python")[np.arange(30)]
    with_fim = permuted(rows, 1.0, prepared.fim_ids)
    data = as_samples(with_fim, prepared.fim_ids.pad)
    write_h5(tmp_path / "data" / "starcoder" / "python" / "1.h5", data)
    made = adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path, holdout=0.01)
    assert made.train["starcoder/python"]["fim_rows"] == 30
    resolved, _ = resolve_entries(entries, made)
    load = loader(made, entries=resolved, fim_rate=1.0)
    _, _, order = load.mixture.locate(np.arange(30))
    np.testing.assert_array_equal(load.rows(0, 30), data[order])


def rows_hash(view, n: int) -> str:
    return hashlib.sha256(view[np.arange(n)].tobytes()).hexdigest()


def n_files_open() -> int:
    return sum(os.path.realpath(f"/proc/self/fd/{name}").endswith(".h5") for name in os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_opens_the_files_anew(finished: Prepared, method: str) -> None:
    view = pickle.loads(pickle.dumps(finished)).rows("starcoder/*")
    before = rows_hash(view, 20)
    assert n_files_open()
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.apply(n_files_open) == 0  # a fork has inherited none
        assert pool.starmap(rows_hash, [(view, 20)] * 4) == [before] * 4
    assert rows_hash(view, 20) == before


def test_few_files_are_open_at_once(prepared: Prepared, tmp_path: Path) -> None:
    for k in range(OPEN_FILES + 40):
        write_h5(tmp_path / f"{k:03d}.h5", np.full((2, 3, T), k % 2, np.int32))
    rows = Hdf5Rows.of(sorted(tmp_path.glob("*.h5")), seq_len=T, vocab_size=VOCAB)
    values = rows[np.random.default_rng(0).permutation(len(rows))]
    assert len(values) == 2 * (OPEN_FILES + 40) and values.mean() == 0.5
    assert n_files_open() == OPEN_FILES


def test_rows_that_are_compressed_together_are_named(prepared: Prepared, tmp_path: Path) -> None:
    said: list[str] = []
    write_h5(tmp_path / "data" / "slow.h5", GOOD, chunks=(4, 1, T))
    adopted(tmp_path / "data", tmp_path / "out", prepared.tokenizer_path, progress=said.append)
    assert f"slow.h5 compresses 4 rows together, so reading one takes long; quicker: h5repack -l data:CHUNK=1x3x{T}" in said[-1]


def test_n_grams_count_finished_rows_by_their_masks(prepared: Prepared) -> None:
    rows = prepared.rows("starcoder/css")[np.arange(40)].astype(np.int64)
    pad = prepared.fim_ids.pad
    settings = {"vocab_size": VOCAB, "pad_id": pad, "max_train_tokens": 1000}
    data = as_samples(rows, pad)
    assert ngram_losses([data[:30]], [data[30:]], **settings) == ngram_losses([rows[:30]], [rows[30:]], **settings)
    assert to_batch(data, pad).mask_BT.mean() < 1


def write_stages(root: Path, prepared: Prepared) -> None:
    """Every part of the three stages, the code with FIM in it; two of the parts as a corpus."""
    text, code, ids = prepared.rows("RedPajama*"), prepared.rows("starcoder/*"), prepared.fim_ids
    for k, part in enumerate(TEXT + CODE):
        view = code if part in CODE else text
        rows = view[np.arange(12 * k, 12 * k + 12) % len(view)]
        if part in CODE:
            rows = permuted(rows, 0.9, ids)
        write_h5(root / part / "data-00000.h5", rows.reshape(-1) if "Book" in part else as_samples(rows, ids.pad))


def test_all_stages_train_on_files_by_the_command_line(crystal, prepared: Prepared, tmp_path: Path) -> None:
    write_stages(tmp_path / "h5", prepared)
    command = [
        "data=hdf5", f"data.root={tmp_path / 'h5'}", f"data.tokenizer={prepared.tokenizer_path}", f"data.out={tmp_path / 'out'}",
        f"run.dir={tmp_path / 'run'}", f"data.vocab_size={VOCAB}", f"model.vocab_size={VOCAB}", "data.valid_rows=2", "data.holdout=0.2",
        "eval=none", "eval.max_new_tokens=16", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "model.d_ffn=64",
        f"scale.seq_len={T}", "scale.batch_rows=2", "scale.save_every=4", "tokens=3072", "backend=cpu", "backend.threads=1",
        "backend.dtype=float32",
    ]  # fmt: skip
    dry = crystal(*command, "dry_run=true")
    assert dry.status == 0 and "in 18 files below" in dry.out and not (tmp_path / "out").exists()
    result = crystal(*command)
    assert result.status == 0, result.err
    assert "fill-in-the-middle of stage 2, 3 is what the files hold" in result.err
    assert "stage 3: complete" in crystal(*command).out
    assert "starcoder/python" in (tmp_path / "run" / "metrics.jsonl").read_text()
    refused = crystal(*command, "data.valid_rows=1")
    assert refused.status == 2 and "prepared otherwise (spec.valid_rows is 2, expected 1)" in refused.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data=hdf5"], "data=hdf5 without data.root; expected the folder that holds *.h5, or folders of them"),
        (["data=hdf5", "data.root=EMPTY", "data.tokenizer=null"], "data=hdf5 without data.tokenizer"),
        (["data=hdf5", "data.root=EMPTY", "data.format=arrow"], "data.format=arrow; expected documents or hdf5"),
        (["data=hdf5", "data.root=EMPTY", "dry_run=true"], "EMPTY holds no *.h5"),
    ],
)
def test_bad_settings(crystal, arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = crystal(*arguments)
    assert result.status == 2 and expected in result.err
