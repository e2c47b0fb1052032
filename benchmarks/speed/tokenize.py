"""Tokenization beside its peers: MB of text per second of one core, and whether the ids are those of `tokenizers`.

    python -m benchmarks.speed.tokenize data=DIR out=FILE.json [rounds=7] [round_mb=4]

DIR holds tokenizer/tokenizer.json, starcoderdata/ and slimpajama/train/. The surprise: each figure comes from a process of its own that
has never seen the documents, since every one of these tokenizers remembers pieces, and one that has seen a text before is timed at
looking things up. In a round all peers get the same documents, one peer after another; the next round has others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.record import options, provenance, write_result
from crystal.__main__ import complain
from crystal.config import UserError, require
from crystal.data.optional import need
from crystal.data.readers import Document, SlimPajama, StarCoder
from crystal.data.tokenizer import load_tokenizer

BATCH_CHARACTERS = 1 << 20  # as in prepare
SCALING_ROUNDS = 3
ONE_CORE = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
BASE, OURS = "tokenizers encode_batch", "crystal"
Batches = list[list[str]]
Encode = Callable[[list[str]], list[np.ndarray]]


def _crystal(file: Path) -> Encode:
    tokenizer = load_tokenizer(file)
    require(tokenizer.engine == "numba", f"the engine {tokenizer.engine}", "numba", "pip install numba")
    return tokenizer.encode_batch


def _tokenizers(method: str) -> Callable[[Path], Encode]:
    def load(file: Path) -> Encode:
        inner = load_tokenizer(file)._inner
        return lambda texts: [_array(found.ids) for found in getattr(inner, method)(texts, add_special_tokens=False)]

    return load


def _tokie(file: Path) -> Encode:
    inner = need("tokie").Tokenizer.from_json(str(file))
    return lambda texts: [_array(found.ids) for found in inner.encode_batch(texts, add_special_tokens=False)]


def _kitoken(file: Path) -> Encode:
    inner = need("kitoken").Kitoken.from_tokenizers_file(str(file))
    return lambda texts: [_array(ids) for ids in inner.encode_all(texts)]


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.array(ids, np.int32)


PEERS: dict[str, Callable[[Path], Encode]] = {
    OURS: _crystal,
    BASE: _tokenizers("encode_batch"),
    "tokenizers encode_batch_fast": _tokenizers("encode_batch_fast"),
    "tokie": _tokie,
    "kitoken": _kitoken,
}


def timed(peer: str, file: Path, shares: list[Batches]) -> dict[str, Any]:
    """One fresh process for each share, all starting together: {"wall_mb_per_s", "cpu_mb_per_s", "documents": a hash of each one's ids}.

    The wall time is from the first one's start to the last one's end; both are without loading and compiling.
    """
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(len(shares)), context.Queue()
    processes = [context.Process(target=_encode, args=(peer, file, k, share, ready, results)) for k, share in enumerate(shares)]
    for process in processes:
        process.start()
    found = [result for _, result in sorted((results.get(timeout=600) for _ in shares), key=lambda pair: pair[0])]
    for process in processes:
        process.join()
    mb = sum(len(text.encode()) for share in shares for batch in share for text in batch) / 1e6
    wall_s = max(one["end_s"] for one in found) - min(one["start_s"] for one in found)
    return {
        "wall_mb_per_s": mb / wall_s,
        "cpu_mb_per_s": mb / sum(one["cpu_s"] for one in found),
        "documents": [digest for one in found for digest in one["documents"]],
    }


def _encode(peer: str, file: Path, k: int, share: Batches, ready: Any, results: Any) -> None:
    encode = PEERS[peer](file)
    encode(["load what is loaded late"])
    ready.wait()
    start_s, cpu_s = time.perf_counter(), time.process_time()
    ids = [encode(batch) for batch in share]
    end_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
    documents = [hashlib.blake2b(one.tobytes(), digest_size=8).hexdigest() for batch in ids for one in batch]
    results.put((k, {"start_s": start_s, "end_s": end_s, "cpu_s": cpu_s, "documents": documents}))


def texts_of(kind: str, data: Path) -> list[str]:
    """All texts of that kind, shuffled, so that a round holds something of everything."""
    reader = StarCoder(str(data / "starcoderdata")) if kind == "code" else SlimPajama(str(data / "slimpajama" / "train"))
    found = (one for name in reader.files() for one in reader.read(name))
    texts = [one.text for one in found if isinstance(one, Document) and one.text]
    random.Random(0).shuffle(texts)
    return texts


def cut(texts: list[str], rounds: int, round_bytes: int) -> list[Batches]:
    """Batches of BATCH_CHARACTERS for each round; no text twice."""
    left, shares = iter(texts), []
    for _ in range(rounds):
        share: Batches = [[]]
        n_bytes = n_characters = 0
        while n_bytes < round_bytes:
            text = next(left, None)
            require(text is not None, f"rounds={rounds} of {round_bytes / 1e6:g} MB", "no more than there is text", "lower rounds=")
            assert text is not None
            if n_characters > BATCH_CHARACTERS:
                share.append([])
                n_characters = 0
            share[-1].append(text)
            n_bytes, n_characters = n_bytes + len(text.encode()), n_characters + len(text)
        shares.append(share)
    return shares


def compared(file: Path, rounds: list[Batches], peers: list[str]) -> dict[str, dict[str, Any]]:
    """Every peer in every round and then all rounds in one go; {peer: figures}."""
    figures: dict[str, dict[str, Any]] = {peer: {"cpu_mb_per_s": [], "wall_mb_per_s": [], "equal": 0, "documents": 0} for peer in peers}
    one_go = [batch for share in rounds for batch in share]
    for k, share in enumerate([*rounds, one_go]):
        order = peers[k % len(peers) :] + peers[: k % len(peers)]
        found = {peer: timed(peer, file, [share]) for peer in order}
        for peer, timing in found.items():
            own = figures[peer]
            if k == len(rounds):
                own["one_go_cpu_mb_per_s"] = timing["cpu_mb_per_s"]
                continue
            own["cpu_mb_per_s"].append(timing["cpu_mb_per_s"])
            own["wall_mb_per_s"].append(timing["wall_mb_per_s"])
            own["documents"] += len(timing["documents"])
            own["equal"] += sum(one == other for one, other in zip(timing["documents"], found[BASE]["documents"], strict=True))
        print(f"round {k}: " + ", ".join(f"{peer} {timing['cpu_mb_per_s']:.1f}" for peer, timing in found.items()), file=sys.stderr)
    return figures


def scaled(file: Path, rounds: list[Batches]) -> dict[str, dict[str, float]]:
    """Median MB per second of wall time with 1 and 2 processes, each with documents of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    for k in range(SCALING_ROUNDS):
        for peer in (OURS, "tokenizers encode_batch_fast"):
            for n in (1, 2):
                shares = [rounds[(k * n + j) % len(rounds)] for j in range(n)]
                found.setdefault(peer, {}).setdefault(str(n), []).append(timed(peer, file, shares)["wall_mb_per_s"])
    return {peer: {n: median(values) for n, values in by_n.items()} for peer, by_n in found.items()}


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"LLaMA's tokenizer, one core a process. {result['rounds']} rounds of {result['round_mb']} MB of new documents, each peer's in a "
        "fresh process that remembers nothing; MB of text per CPU-second, medians (lowest to highest). `times`: the median over rounds of "
        "crystal's speed over the peer's. `one go`: all rounds' documents in one fresh process. `equal`: documents with the ids of "
        f"{BASE}.\n"
    ]
    for kind, peers in result["kinds"].items():
        lines += [f"## {kind}\n", "| peer | MB per CPU-s | times | one go | equal |", "|---|---|---|---|---|"]
        for peer, own in peers.items():
            speeds = own["cpu_mb_per_s"]
            times = median(ours / other for ours, other in zip(peers[OURS]["cpu_mb_per_s"], speeds, strict=True))
            lines.append(
                f"| {peer} | {median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f}) | {times:.1f} | "
                f"{own['one_go_cpu_mb_per_s']:.1f} | {own['equal']} of {own['documents']} |"
            )
        lines.append("")
    lines += ["## Processes at once: MB per second of wall time, code\n", "| peer | 1 | 2 | times |", "|---|---|---|---|"]
    lines += [f"| {peer} | {by['1']:.1f} | {by['2']:.1f} | {by['2'] / by['1']:.2f} |" for peer, by in result["scaling"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """1 where a document's ids are not those of `tokenizers`, else 0."""
    given = options(arguments, {"data": None, "out": None, "rounds": 7, "round_mb": 4})
    os.environ |= ONE_CORE
    data = Path(given["data"])
    file, round_bytes = data / "tokenizer" / "tokenizer.json", given["round_mb"] * 10**6
    shares = {kind: cut(texts_of(kind, data), given["rounds"], round_bytes) for kind in ("code", "prose")}
    peers = [peer for peer in PEERS if importlib.util.find_spec(peer.split()[0])]
    command = ["python", "-m", "benchmarks.speed.tokenize", *("data=DIR" if one.startswith("data=") else one for one in arguments)]
    result: dict[str, Any] = {
        **provenance(shlex.join(command), ["numba", "numpy", "tokenizers", "tokie", "kitoken"]),
        "rounds": given["rounds"],
        "round_mb": given["round_mb"],
        "kinds": {kind: compared(file, rounds, peers) for kind, rounds in shares.items()},
        "scaling": scaled(file, shares["code"]),
    }
    write_result(Path(given["out"]), "Tokenization", result, page(result))
    return int(any(kind[OURS]["equal"] < kind[OURS]["documents"] for kind in result["kinds"].values()))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(complain(str(error)))
