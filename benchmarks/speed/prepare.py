"""Preparation beside its peers, end to end: from compressed documents to tokens on disk, and its memory as the data grows.

    python -m benchmarks.speed.prepare data=DIR out=FILE.json [mbpp=FILE] [rounds=5] [workers=2] [copies=100]

DIR holds tokenizer/tokenizer.json, starcoderdata/ and slimpajama/train/. Peers: datatrove's own tokenization pipeline, and the way of
Megatron-LM's tools/preprocess_data.py (a pool that encodes a document at a time, and Megatron's IndexedDatasetBuilder); they read the same
documents, Megatron's from plain jsonl, which is all it reads. The surprise: they do less. Neither packs rows, holds documents out or checks
what it wrote; no peer is charged for what it does not do, and crystal is charged for all that it does.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.code.problems import Benchmark, HumanEval, Mbpp
from benchmarks.record import options, provenance, write_result
from crystal.__main__ import complain
from crystal.config import UserError, require
from crystal.data.decontaminate import Decontaminator, Problem
from crystal.data.executors import Local
from crystal.data.optional import need
from crystal.data.prepare import Settings, prepare
from crystal.data.readers import Document, Reader, SlimPajama, StarCoder
from crystal.data.tokenizer import EOS, load_tokenizer

OURS = "crystal"
ONE_CORE = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
PACKAGES = ["numpy", "tokenizers", "numba", "datatrove", "megatron-core"]
CHUNK_DOCUMENTS = 32  # as preprocess_data.py hands them to its pool


def _readers(data: Path) -> list[Reader]:
    return [SlimPajama(str(data / "slimpajama" / "train")), StarCoder(str(data / "starcoderdata"))]


def crystal(data: Path, out: Path, workers: int, decontaminator: Decontaminator | None = None) -> None:
    """`task=prepare`, rows of 2,048 tokens."""
    settings = Settings(2048, 32032, holdout=0.003, valid_rows=32)
    prepare(
        _readers(data), out, settings, tokenizer=data / "tokenizer" / "tokenizer.json", label="benchmark", progress=lambda line: None,
        executor=Local(workers), decontaminator=decontaminator,
    )  # fmt: skip


def crystal_decontaminated(data: Path, out: Path, workers: int) -> None:
    """The same, against HumanEval and, where CRYSTAL_MBPP names its file, MBPP."""
    benchmarks: list[Benchmark] = [HumanEval(), *([Mbpp(os.environ["CRYSTAL_MBPP"])] if os.environ.get("CRYSTAL_MBPP") else [])]
    problems = [Problem(one.task_id, one.statement, one.canonical) for benchmark in benchmarks for one in benchmark.problems()]
    crystal(data, out, workers, Decontaminator(problems))


def datatrove(data: Path, out: Path, workers: int) -> None:
    """Its readers, DocumentTokenizer and local executor, a task for each file."""
    local = need("datatrove.executor.local").LocalPipelineExecutor
    readers, tokens = need("datatrove.pipeline.readers"), need("datatrove.pipeline.tokens")
    corpora = {
        "slimpajama": (readers.JsonlReader(str(data / "slimpajama" / "train"), text_key="text"), 8),
        "starcoder": (readers.ParquetReader(str(data / "starcoderdata"), text_key="content"), 10),
    }
    for name, (reader, tasks) in corpora.items():
        tokenizer = tokens.DocumentTokenizer(
            str(out / name), str(data / "tokenizer" / "tokenizer.json"), eos_token=EOS, shuffle_documents=False, save_final_metadata=False
        )
        local([reader, tokenizer], tasks=tasks, workers=workers, logging_dir=str(out / "logs" / name)).run()


def megatron(data: Path, out: Path, workers: int) -> None:
    """preprocess_data.py's way: the parent reads lines, a pool encodes them, the parent writes."""
    import numpy as np

    indexed = need("megatron.core.datasets.indexed_dataset")
    out.mkdir(parents=True)
    for corpus in sorted((data / "jsonl").glob("*.jsonl")):
        builder = indexed.IndexedDatasetBuilder(str(out / f"{corpus.stem}.bin"), dtype=np.uint16)
        with open(corpus, "rb") as lines, multiprocessing.Pool(workers) as pool:
            work = ((line, str(data / "tokenizer" / "tokenizer.json")) for line in lines)
            for ids in pool.imap(_encode, work, CHUNK_DOCUMENTS):
                builder.add_document(np.array(ids, np.uint16), [len(ids)])
        builder.finalize(str(out / f"{corpus.stem}.idx"))


_inner = lru_cache(maxsize=1)(lambda file: load_tokenizer(file)._inner)


def _encode(work: tuple[bytes, str]) -> list[int]:
    line, file = work
    found: list[int] = _inner(file).encode(json.loads(line)["text"], add_special_tokens=False).ids
    return [*found, _inner(file).token_to_id(EOS)]


PEERS = {OURS: crystal, "crystal, decontaminated": crystal_decontaminated, "datatrove": datatrove, "megatron": megatron}


def timed(peer: str, data: Path, workers: int) -> dict[str, float]:
    """Run a peer in a process of its own, from its start to its end: {"wall_s", "max_rss_mb" (workers that it does not wait for apart)}."""
    with tempfile.TemporaryDirectory(dir=data) as folder:
        arguments = ["-m", "benchmarks.speed.prepare", f"peer={peer}", f"data={data}", f"out={folder}/out", f"workers={workers}"]
        t0 = time.perf_counter()
        log = os.open(Path(folder, "log"), os.O_CREAT | os.O_WRONLY)  # datatrove says a lot
        quiet = [(os.POSIX_SPAWN_DUP2, log, stream) for stream in (1, 2)]
        child = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ | ONE_CORE, file_actions=quiet)
        _, status, usage = os.wait4(child, 0)
        wall_s = time.perf_counter() - t0
        last = Path(folder, "log").read_text(errors="replace").splitlines()[-1:]
        require(status == 0, f"{peer} ended with {status} ({' '.join(last)})", "0", "install what it misses")
    return {"wall_s": wall_s, "max_rss_mb": usage.ru_maxrss / 1024}


def compared(data: Path, rounds: int, workers: int) -> dict[str, list[dict[str, float]]]:
    """Every peer once in every round, in turn; one round before them fills caches and is not counted."""
    peers = [peer for peer in PEERS if peer != "megatron" or importlib.util.find_spec("megatron")]
    if len(peers) < len(PEERS):
        print("megatron-core is not installed: without it; pip install --no-deps megatron-core", file=sys.stderr)
    figures: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for k in range(rounds + 1):
        for peer in peers[k % len(peers) :] + peers[: k % len(peers)]:
            found = timed(peer, data, workers)
            print(f"round {k}: {peer} {found['wall_s']:.1f} s", file=sys.stderr)
            figures[peer] += [found] if k else []
    return figures


def grown(data: Path, copies: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Crystal on one of the files and on `copies` of it."""
    file = sorted((data / "slimpajama" / "train").glob("*/*.zst"))[0]
    found = {}
    for n in (1, copies):
        corpus = scratch / f"copies-{n}"
        (corpus / "slimpajama" / "train" / "chunk1").mkdir(parents=True)
        for k in range(n):
            os.link(file, corpus / "slimpajama" / "train" / "chunk1" / f"example_train_{k}.jsonl.zst")
        (corpus / "starcoderdata" / "none").mkdir(parents=True)
        language = sorted((data / "starcoderdata").glob("*/*.parquet"))[0]
        os.link(language, corpus / "starcoderdata" / "none" / language.name)
        shutil.copytree(data / "tokenizer", corpus / "tokenizer")
        found[str(n)] = timed(OURS, corpus, workers=1)  # which works in the process itself
    return found


def _documents(data: Path) -> Iterator[tuple[str, str]]:
    for name, reader in zip(("slimpajama", "starcoder"), _readers(data), strict=True):
        for file in reader.files():
            yield from ((name, one.text) for one in reader.read(file) if isinstance(one, Document) and one.text)


def _copied(data: Path, scratch: Path) -> float:
    """The corpora in `scratch`, once more as plain jsonl for Megatron; MB of text."""
    for name in ("slimpajama", "starcoderdata", "tokenizer"):
        shutil.copytree(data / name, scratch / name)
    (scratch / "jsonl").mkdir()
    mb = 0.0
    for name, text in _documents(data):
        with open(scratch / "jsonl" / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"text": text}) + "\n")
        mb += len(text.encode()) / 1e6
    return mb


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Documents of {result['mb']:.1f} MB of text, compressed as they are published, to tokens on disk; whole processes, start-up "
        f"included; {result['workers']} workers; {result['rounds']} rounds in turn; medians (lowest to highest). `times`: "
        "the median over rounds of the peer's time over crystal's.\n",
        "| peer | seconds | MB/s | times |", "|---|---|---|---|",
    ]  # fmt: skip
    for peer, rounds in result["peers"].items():
        wall = [one["wall_s"] for one in rounds]
        times = median(theirs / ours["wall_s"] for theirs, ours in zip(wall, result["peers"][OURS], strict=True))
        speed = result["mb"] / median(wall)
        lines.append(f"| {peer} | {median(wall):.1f} ({min(wall):.1f} to {max(wall):.1f}) | {speed:.1f} | {times:.2f} |")
    lines += [
        "",
        "Memory of crystal, one worker, on one file of text and one of code, and on copies of the former:\n",
        "| copies | MB | seconds |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {one['max_rss_mb']:.0f} | {one['wall_s']:.1f} |" for n, one in result["memory"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    given = options(arguments, {"data": None, "out": None, "mbpp": "", "rounds": 5, "workers": 2, "copies": 100, "peer": ""})
    data, out = Path(given["data"]), Path(given["out"])
    if given["peer"]:
        PEERS[given["peer"]](data, out, given["workers"])
        return
    os.environ["CRYSTAL_MBPP"] = given["mbpp"]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        mb = _copied(data, scratch)
        result = {
            **provenance(shlex.join(["python", "-m", "benchmarks.speed.prepare", *arguments]), PACKAGES),
            "mb": mb, "rounds": given["rounds"], "workers": given["workers"],
            "peers": compared(scratch, given["rounds"], given["workers"]),
            "memory": grown(scratch, given["copies"], scratch),
        }  # fmt: skip
    write_result(out, "Preparation, from documents to tokens on disk", result, page(result))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(str(error)))
