"""What a sample is made of and where a document goes, against the corpus's own files and a walk through all samples."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from crystal.config import UserError
from crystal.data.fim import draws_of, unpermute_row, words_of
from crystal.data.index import FENCE, FENCE_PIECES
from crystal.data.ledger import Ledger, Seen, document_of
from crystal.data.loader import Change, Entry, Loader
from crystal.data.pack import PIECE
from crystal.data.permute import key_of
from crystal.data.readers import Document, SlimPajama, StarCoder
from crystal.data.shards import Prepared
from crystal.data.tokenizer import load_tokenizer
from crystal.runlog import write_json
from tests.data.conftest import prepare_corpus
from tests.data.test_hdf5 import adopted, as_samples, write_h5

C4, CODE = Entry("c4", "RedPajamaC4/*", 0.4, slice=(0.2, 0.9)), Entry("code", "starcoder/*", 0.6, fim=True)
CHANGES = [Change(150, (Entry("book", "RedPajamaBook/even", 0.5), Entry("code", "starcoder/*", 0.5, fim=True)))]
N_SAMPLES = 900  # more than an epoch of each


def loader(prepared: Prepared, **changes) -> Loader:
    arguments = {"entries": [C4, CODE], "seed": 3, "batch_rows": 8, "fim_rate": 0.7, "spm_rate": 0.5, "changes": CHANGES}
    return Loader(prepared, **(arguments | changes))


def by_sample(asked: Ledger, n: int) -> dict[int, list[Seen]]:
    found: dict[int, list[Seen]] = {}
    for seen in asked.seen(np.arange(n)):
        found.setdefault(seen.sample, []).append(seen)
    assert list(found) == list(range(n))
    return found


@pytest.fixture(scope="module")
def texts(corpus: Path) -> dict[tuple[str, int], Document]:
    readers = SlimPajama(str(corpus / "slimpajama")), StarCoder(str(corpus / "starcoder"))
    documents = [document for reader in readers for file in reader.files() for document in reader.read(file)]
    return {(document.file, document.index): document for document in documents}


def test_pieces_are_what_the_files_hold_and_the_rows_are_trained_on(prepared, texts):
    load, tokenizer = loader(prepared), load_tokenizer(prepared.tokenizer_path)
    rows = load.rows(0, N_SAMPLES)
    streams, epochs, _ = load.mixture.locate(np.arange(N_SAMPLES))
    for sample, pieces in by_sample(Ledger(load), N_SAMPLES).items():
        unpermuted = unpermute_row(rows[sample], [len(seen.ids) for seen in pieces], prepared.fim_ids)
        np.testing.assert_array_equal(unpermuted[unpermuted != prepared.fim_ids.pad], np.concatenate([seen.ids for seen in pieces]))
        for seen in pieces:
            document = texts[seen.file, seen.place]
            ids = np.append(tokenizer.encode(document.text), prepared.eos_id)
            np.testing.assert_array_equal(ids[seen.start : seen.end], seen.ids)
            assert seen.source.startswith(document.source)
            assert (seen.entry, seen.epoch) == (load.mixture.streams[streams[sample]].name, epochs[sample])


def test_fim_orders_are_those_that_were_drawn(prepared):
    load = loader(prepared, changes=[])
    orders = []
    for seen in Ledger(load).seen(np.arange(N_SAMPLES)):
        if seen.entry == "c4":
            assert seen.fim is None
            continue
        piece = np.array([(prepared.files.index(seen.file), seen.place, seen.start, 0)], PIECE)
        fim, spm, *cuts = draws_of(words_of(piece, key=key_of("fim", load.seed), epochs=np.array([seen.epoch]), files=load._files))[0]
        if min(cuts) * len(seen.ids) < 1:  # nothing before the middle: the two are one
            continue
        assert seen.fim == (None if fim >= 0.7 else "SPM" if spm < 0.5 else "PSM")
        orders.append(seen.fim)
    assert min(orders.count(order) for order in (None, "SPM", "PSM")) > 100


def test_orders_of_crystalcoders_fim(corpus, tmp_path):
    made = prepare_corpus(corpus, tmp_path / "out", fim_room=False)
    load = loader(made, fim_style="crystalcoder", changes=[])
    found = by_sample(Ledger(load), 200)
    n_permuted = sum(seen.fim is not None for pieces in found.values() for seen in pieces)
    assert n_permuted == sum((row == made.fim_ids.prefix).sum() for row in load.rows(0, 200)) > 100
    for number, pieces in found.items():
        row = load.rows(number, 1)[0]
        begins = [seen for seen in pieces if len(seen.ids) > 1][0]
        assert (begins.fim is not None) == (row[0] == made.fim_ids.prefix)


@pytest.mark.parametrize("changes", [[], CHANGES])
def test_a_document_is_in_the_samples_that_hold_it(prepared, changes):
    asked = Ledger(loader(prepared, changes=changes))
    held: dict[tuple[str, int], set[int]] = {}
    for sample, pieces in by_sample(asked, N_SAMPLES).items():
        for seen in pieces:
            held.setdefault((seen.file, seen.place), set()).add(sample)
    assert len(held) > 200
    for (file, place), samples in held.items():
        assert asked.samples_of(prepared.files.index(file), place, N_SAMPLES).tolist() == sorted(samples)
        assert asked.samples_of(prepared.files.index(file), place, 100).tolist() == [k for k in sorted(samples) if k < 100]
    assert len(asked.samples_of(0, 10**6, N_SAMPLES)) == 0


@pytest.mark.parametrize("corpus_layout", [False, True])
def test_rows_of_hdf5_files_are_named_by_file_and_row(prepared, tmp_path, corpus_layout):
    view = prepared.rows("starcoder/*")
    rows = view[np.arange(len(view))]
    data = rows.ravel().astype(np.int32) if corpus_layout else as_samples(rows, prepared.fim_ids.pad)
    for number, part in enumerate(np.array_split(data, 3)):
        write_h5(tmp_path / "files" / "code" / f"{number}.h5", part, **({"compression": None} if corpus_layout else {}))
    made = adopted(tmp_path / "files", tmp_path / "out", prepared.tokenizer_path)
    load = loader(made, entries=[Entry("code", "code", 1.0, slice=(0.3, 1.0))], changes=[])
    for seen in Ledger(load).seen(np.arange(60)):
        with h5py.File(tmp_path / "files" / seen.file) as file:
            there = file["data"][seen.place : seen.place + made.seq_len] if corpus_layout else file["data"][seen.place, 0]
        assert (seen.source, seen.start, seen.end, seen.fim) == ("code", None, None, None)
        np.testing.assert_array_equal(seen.ids[: len(there)], there)
        np.testing.assert_array_equal(seen.ids, load.rows(seen.sample, 1)[0][0])


@pytest.mark.parametrize(
    ("text", "found"),
    [("a/x.json:3", [0]), ("b/x.json:3", [1]), ("c/y:z.json:3", [2]), ("y:z.json:3", [2]), ("twice:3", [3, 4])],
)
def test_documents_by_name(text, found):
    assert document_of(["a/x.json", "b/x.json", "c/y:z.json", "twice", "twice"], text) == (found, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x.json:3", "2 files end so; .* a/x.json"),
        ("json:3", "no input file is json"),
        ("a/x.json", "FILE:PLACE"),
        ("a:-1", "FILE"),
    ],
)
def test_documents_that_there_are_not(text, words):
    with pytest.raises(UserError, match=words):
        document_of(["a/x.json", "b/x.json"], text)


N_ROWS, N_PARTS, SEQ_LEN = 1_000_000_000, 4, 16
PART_ROWS, FILE_ROWS = N_ROWS // N_PARTS, 10_000  # a row is a document, FILE_ROWS of them are an input file
FEW_FAULTS = 4000  # to touch every page of one part's row_pieces takes 30,000 at least, of its pieces 75,000


def faults() -> int:
    """How often this process has touched memory that was not there yet, files' pages (some at once) among it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


@pytest.fixture(scope="module")
def huge(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """10^9 rows in files with holes: their lengths and fences are real, of the rest only what `write_index` writes."""
    folder, train = tmp_path_factory.mktemp("huge"), {}
    for part in range(N_PARTS):
        shapes = {"shard": (prepared.dtype, (PART_ROWS, SEQ_LEN + 1)), "pieces": (PIECE, (PART_ROWS,))}
        shapes |= {"row_pieces": (np.dtype("<i8"), (PART_ROWS + 1,)), "fences": (FENCE, (-(-PART_ROWS // FENCE_PIECES),))}
        made = {}
        for name, (dtype, shape) in shapes.items():
            path = folder / f"{part}-{name}.npy"
            np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
            made[name] = {"file": path.name, "rows": shape[0], "bytes": path.stat().st_size, "crc32": 0}
        fences = np.load(folder / f"{part}-fences.npy", mmap_mode="r+")
        fences["row"] = np.arange(0, PART_ROWS, FENCE_PIECES)
        for side, rows in (("low", fences["row"]), ("high", np.minimum(fences["row"] + FENCE_PIECES, PART_ROWS) - 1)):
            fences[f"{side}_file"], fences[f"{side}_place"] = np.divmod(rows + part * PART_ROWS, FILE_ROWS)
        train[f"part{part}"] = {"rows": PART_ROWS, "fim_room": True, "shards": [made.pop("shard")], "index": made}
    files = [f"{number:06d}.parquet" for number in range(N_ROWS // FILE_ROWS)]
    manifest = prepared.manifest | {"files": files, "train": train, "valid": {}, "spec": {"seq_len": SEQ_LEN}}
    write_json(folder / "manifest.json", manifest)
    shutil.copyfile(prepared.tokenizer_path, folder / "tokenizer.json")
    return Prepared.open(folder, verify=False)


def write_index(huge: Prepared, rows: np.ndarray) -> None:
    """What the index says of some of all rows."""
    for part in np.unique(rows // PART_ROWS).tolist():
        pieces, row_pieces = (np.load(huge.folder / f"{part}-{name}.npy", mmap_mode="r+") for name in ("pieces", "row_pieces"))
        mine = rows[rows // PART_ROWS == part]
        here = mine % PART_ROWS
        pieces["file"][here], pieces["place"][here] = np.divmod(mine, FILE_ROWS)
        pieces["length"][here] = SEQ_LEN // 2
        row_pieces[here], row_pieces[here + 1] = here, here + 1


def huge_loader(huge: Prepared) -> Loader:
    entries = [Entry("one", "part[01]", 0.3), Entry("two", "part2", 0.5, fim=True), Entry("three", "part3", 0.2, slice=(0.0, 0.5))]
    return Loader(huge, entries, seed=0, batch_rows=32, fim_rate=0.9)


def test_a_document_among_a_billion_rows_is_found_in_its_own_corner(huge):
    row = 623_456_789
    fence = row // PART_ROWS * PART_ROWS + row % PART_ROWS // FENCE_PIECES * FENCE_PIECES
    write_index(huge, np.arange(fence, fence + FENCE_PIECES))
    before = faults()
    load = huge_loader(huge)
    samples = Ledger(load).samples_of(*divmod(row, FILE_ROWS), N_ROWS)
    assert faults() - before < FEW_FAULTS
    streams, epochs, rows = load.mixture.locate(samples)
    assert (streams == 1).all() and (rows == row - 2 * PART_ROWS).all() and epochs.tolist() == [0, 1]


def test_a_step_of_a_billion_rows_reads_its_own(huge):
    samples = 2_345_678 * 32 + np.arange(32)
    streams, _, rows = huge_loader(huge).mixture.locate(samples)
    expected = np.array([0, 2, 3])[streams] * PART_ROWS + rows
    write_index(huge, expected)
    before = faults()
    found = list(Ledger(huge_loader(huge)).seen(samples))
    assert faults() - before < FEW_FAULTS
    assert [FILE_ROWS * int(seen.file.partition(".")[0]) + seen.place for seen in found] == expected.tolist()
    assert [seen.source for seen in found] == [f"part{row // PART_ROWS}" for row in expected.tolist()]
