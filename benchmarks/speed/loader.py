"""The loader beside its peers: tokens per second from the page cache in batches of 8 x 2048, what a step waits, and memory as data grows.

    python -m benchmarks.speed.loader out=FILE.json [rounds=7] [rows=16384] [growth=100] [scratch=DIR]

All read the same random rows, written below `scratch` (default: a temporary folder) and read once beforehand. The surprise: what is called
raw is no loader, but the least that any can do: numpy takes rows that are known beforehand from a memory map and widens them to int64
inputs and labels. One raw reads a single file, the other the same rows from the same shards as crystal, which the training has to.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.record import options, provenance, write_result
from crystal.__main__ import complain
from crystal.config import UserError
from crystal.data.index import IndexWriter
from crystal.data.loader import Entry, Loader
from crystal.data.npy import NpyWriter
from crystal.data.optional import need
from crystal.data.pack import DOCUMENT, Plan, packer
from crystal.data.shards import Prepared
from crystal.data.tokenizer import ADDED_TOKENS

T, B = 2048, 8
EOS, VOCAB, SHARD_ROWS = 2, 32032, 1024
SPECIAL = {name: 32000 + k for k, name in enumerate(ADDED_TOKENS)}
MIXTURE = {"web": 0.5, "code": 0.3, "books": 0.15, "wiki": 0.05}
STEP_S = 0.005  # that a step of training takes where it is asked how long it waits
OURS, RAW, SHARDS = "crystal", "raw memory map, one file", "raw memory map, the same shards"
MEMORY_BATCHES = 1000


def prepared(folder: Path, n_rows: int, *, fim_room: bool) -> Prepared:
    """Rows of random ids in documents of about 1,000, an equal number in each part, in shards of SHARD_ROWS."""
    train, rng = {}, np.random.default_rng(0)
    for part in MIXTURE:
        plan = _plan(n_rows // len(MIXTURE), rng, fim_room=fim_room)
        index = IndexWriter(folder / "train" / part)
        index.append(plan)
        shards, rows = [], _rows(plan, rng)
        for first in range(0, len(rows), SHARD_ROWS):
            writer = NpyWriter(folder / "train" / part / f"{first // SHARD_ROWS:05d}.npy", (T + 1,), np.dtype(np.uint16))
            writer.append(rows[first : first + SHARD_ROWS])
            shards.append({"file": str(writer.path.relative_to(folder)), **writer.close()})
        found = {name: {"file": f"train/{part}/{name}.npy", **entry} for name, entry in index.close().items()}
        train[part] = {"rows": len(rows), "fim_room": fim_room, "shards": shards, "index": found}
    return Prepared(folder, _manifest(train))


def _plan(n_rows: int, rng: np.random.Generator, *, fim_room: bool) -> Plan:
    documents = np.zeros(2 * n_rows + 64, DOCUMENT)
    documents["tokens"] = rng.lognormal(6.9, 1.0, len(documents)) + 1
    documents["place"] = np.arange(len(documents))
    plan = packer("split", T + 1, fim_room=fim_room).add(0, documents)
    return Plan(plan.pieces[: plan.counts[:n_rows].sum()], plan.counts[:n_rows])


def _rows(plan: Plan, rng: np.random.Generator) -> np.ndarray:
    rows = rng.integers(3, 32000, (len(plan.counts), T + 1), dtype=np.uint16)
    for row, own in zip(rows, np.split(plan.pieces["length"], np.cumsum(plan.counts)[:-1]), strict=True):
        ends = np.cumsum(own)
        row[ends - 1], row[ends[-1] :] = EOS, SPECIAL["<fim_pad>"]
    return rows


def _manifest(train: dict[str, Any]) -> dict[str, Any]:
    return {"eos_id": EOS, "vocab_size": VOCAB, "special": SPECIAL, "spec": {"seq_len": T}, "train": train, "valid": {}}


def loader(data: Prepared, *, fim: bool) -> Loader:
    """Of a mixture of four sources; with FIM, in all of them."""
    entries = [Entry(part, part, weight, fim=fim) for part, weight in MIXTURE.items()]
    return Loader(data, entries, seed=0, batch_rows=B, fim_rate=0.9 if fim else 0.0)


Reader = Callable[[], Iterator[Any]]  # of one epoch's worth of batches


def readers(data: Prepared, code: Prepared, scratch: Path, n_batches: int) -> dict[str, Reader]:
    """Every peer that is installed, its data written; `code`: rows with room for FIM."""
    shards = [np.asarray(np.load(data.folder / shard["file"], mmap_mode="r")) for entry in data.train.values() for shard in entry["shards"]]
    rows = np.concatenate(shards)
    np.save(scratch / "rows.npy", rows)
    rows.tofile(scratch / "tokens.bin")
    one_file = np.load(scratch / "rows.npy", mmap_mode="r")
    order = np.random.default_rng(1).permutation(len(rows))[: n_batches * B].reshape(n_batches, B)
    ours, with_fim = loader(data, fim=False), loader(code, fim=True)
    streams, _, own = ours.mixture.locate(np.arange(n_batches * B))
    firsts = np.cumsum([0, *(entry["rows"] for entry in data.train.values())])
    shard, row = np.divmod(firsts[streams] + own, SHARD_ROWS)
    found: dict[str, Reader] = {
        RAW: lambda: (_batch(one_file[rows]) for rows in order),
        SHARDS: lambda: (
            _batch(np.stack([shards[k][r] for k, r in zip(shard[i : i + B].tolist(), row[i : i + B].tolist(), strict=True)]))
            for i in range(0, len(row), B)
        ),
        OURS: lambda: iter(ours.batches(0, n_batches)),
        "crystal, FIM in 90 % of the documents": lambda: iter(with_fim.batches(0, n_batches)),
        "nanoGPT": lambda: (_nanogpt(scratch / "tokens.bin") for _ in range(n_batches)),
    }
    if importlib.util.find_spec("litdata"):
        found["litdata"] = _litdata(rows, scratch / "litdata")
    if importlib.util.find_spec("streaming"):
        found["mosaicml-streaming"] = _mosaicml(rows, scratch / "mosaicml")
    return found


def _batch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)


def _nanogpt(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """After get_batch of karpathy/nanoGPT's train.py: random places, a new map every time."""
    data = np.memmap(file, dtype=np.uint16, mode="r")
    places = torch.randint(len(data) - T, (B,)).tolist()
    x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in places])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in places])
    return x, y


def _litdata(rows: np.ndarray, folder: Path) -> Reader:
    litdata = need("litdata")
    tokens_loader = need("litdata.streaming.item_loader").TokensLoader
    writer = need("litdata.streaming.writer").BinaryWriter(str(folder), chunk_bytes="64MB", item_loader=tokens_loader(block_size=T + 1))
    for k, row in enumerate(rows):
        writer[k] = torch.from_numpy(row.astype(np.int32))
    writer.done()
    writer.merge()
    data = litdata.StreamingDataset(str(folder), item_loader=tokens_loader(block_size=T + 1), shuffle=True, drop_last=True)
    batches = litdata.StreamingDataLoader(data, batch_size=B, num_workers=0)
    return lambda: ((block[:, :-1].long(), block[:, 1:].long()) for block in batches)


def _mosaicml(rows: np.ndarray, folder: Path) -> Reader:
    streaming = need("streaming")
    with streaming.MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{T + 1}"}) as writer:
        for row in rows:
            writer.write({"tokens": row})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=B)

    def collate(samples: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        return _batch(np.stack([sample["tokens"] for sample in samples]))

    batches = torch.utils.data.DataLoader(data, batch_size=B, num_workers=0, collate_fn=collate)
    return lambda: iter(batches)


def timed(read: Reader) -> dict[str, float]:
    """Mtok per second of wall time and of all threads' CPU time, over one epoch's worth of batches."""
    start_s, cpu_s = time.perf_counter(), time.process_time()
    n_tokens = sum(batch.inputs_BT.size if hasattr(batch, "inputs_BT") else B * T for batch in read())
    return {"wall": n_tokens / (time.perf_counter() - start_s) / 1e6, "cpu": n_tokens / (time.process_time() - cpu_s) / 1e6}


def compared(peers: dict[str, Reader], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Interleaved: every peer once a round, each round beginning with another one; the first round warms up."""
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in peers}
    names = list(peers)
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            figures = timed(peers[name])
            if k:
                for clock, value in figures.items():
                    found[name][clock].append(value)
        last = {name: round(own["wall"][-1]) for name, own in found.items() if own["wall"]}
        print(f"round {k}: {last or 'warm'}", file=sys.stderr)
    return found


def waited(read: Reader, n_batches: int) -> dict[str, float]:
    """Microseconds that a step of STEP_S waits for its batch, the first ones apart: median and the 99th percentile."""
    waits, batches = [], read()
    for _ in range(n_batches):
        start_s = time.perf_counter()
        next(batches)
        waits.append((time.perf_counter() - start_s) * 1e6)
        time.sleep(STEP_S)
    return {"median_us": median(waits[10:]), "p99_us": float(np.percentile(waits[10:], 99))}


def grown(scratch: Path, growth: int) -> list[dict[str, float]]:
    """The memory of a fresh process that reads MEMORY_BATCHES batches of 1 and of `growth` shards of 65,536 rows in each part."""
    found = []
    for n_shards in (1, growth):
        folder, train = scratch / f"sparse{n_shards}", {}
        for part in MIXTURE:
            shards = [_sparse(folder, f"train/{part}/{k:05d}.npy", 65536) for k in range(n_shards)]
            train[part] = {"rows": 65536 * n_shards, "fim_room": False, "shards": shards}
        (folder / "manifest.json").write_text(json.dumps(_manifest(train)))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(_memory_of, (folder,)))
    return found


def _sparse(folder: Path, name: str, n_rows: int) -> dict[str, Any]:
    """A file of zeros that takes no room on the disk."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.uint16, shape=(n_rows, T + 1)).flush()
    return {"file": name, "rows": n_rows, "bytes": 0, "crc32": 0}


def _memory_of(folder: Path) -> dict[str, float]:
    data = Prepared(folder, json.loads((folder / "manifest.json").read_text()))
    n_rows = sum(entry["rows"] for entry in data.train.values())
    ours, before = loader(data, fim=False), _status()
    for _ in ours.batches(0, MEMORY_BATCHES):
        pass
    after = _status()
    return {"tokens": n_rows * T, "peak_mb": after["VmHWM"], "own_mb": after["RssAnon"], "reading_mb": after["RssAnon"] - before["RssAnon"]}


def _status() -> dict[str, float]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1e3 for words in lines if words[-1] == "kB"}


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    mtok = result["mtok_per_s"]
    lines = [
        f"{result['rows'] * T / 1e6:.0f} M tokens in the page cache, batches of {B} x {T}, {result['rounds']} interleaved rounds of "
        f"{result['batches']} batches: M tokens per second of wall time and of all threads' CPU time, medians (lowest to highest). `of "
        f"raw`: the median over rounds of the peer's speed over that of `{SHARDS}`.\n",
        "| | Mtok/s | of raw | Mtok per CPU-second | of raw |",
        "|---|---|---|---|---|",
    ]
    for name, own in mtok.items():
        cells = []
        for clock in ("wall", "cpu"):
            ratio = median(one / raw for one, raw in zip(own[clock], mtok[SHARDS][clock], strict=True))
            cells += [f"{median(own[clock]):.0f} ({min(own[clock]):.0f} to {max(own[clock]):.0f})", f"{ratio:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"\n## What a step of {STEP_S * 1e3:g} ms waits for its batch\n", "| | median | 99th percentile |", "|---|---|---|"]
    lines += [f"| {name} | {own['median_us']:.0f} us | {own['p99_us']:.0f} us |" for name, own in result["waits"].items()]
    lines += [
        f"\n## Memory of a fresh process that reads {MEMORY_BATCHES} batches (sparse files)\n",
        "| tokens of data | peak, the map's pages too | its own | of that while reading |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {own['tokens'] / 1e9:,.1f} B | {own['peak_mb']:.0f} MB | {own['own_mb']:.0f} MB | {own['reading_mb']:.1f} MB |"
        for own in result["memory"]
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    given = options(arguments, {"out": None, "rounds": 7, "rows": 16384, "growth": 100, "scratch": ""})
    command = ["python", "-m", "benchmarks.speed.loader", *(one for one in arguments if not one.startswith("scratch="))]
    n_batches = given["rows"] // B
    result = provenance(shlex.join(command), ["numpy", "torch", "litdata", "mosaicml-streaming"])
    with tempfile.TemporaryDirectory(dir=given["scratch"] or None) as folder:
        scratch = Path(folder)
        data, code = (prepared(scratch / name, given["rows"], fim_room=name == "code") for name in ("text", "code"))
        peers = readers(data, code, scratch, n_batches)
        result |= {
            "rounds": given["rounds"], "rows": given["rows"], "batches": n_batches, "mtok_per_s": compared(peers, given["rounds"]),
            "waits": {name: waited(peers[name], 400) for name in peers}, "memory": grown(scratch, given["growth"]),
        }  # fmt: skip
    write_result(Path(given["out"]), "Loader", result, page(result))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(str(error)))
