"""A small corpus in the real formats, and what is prepared from it; built once for all tests of crystal/data."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from crystal.data.prepare import Settings, prepare
from crystal.data.readers import SlimPajama, StarCoder
from crystal.data.shards import Prepared

SYLLABLES = ("ka", "to", "mi", "rens", "ul", "ba", "sho", "per", "ing", "dro")
WORDS = [one + two + three for one in SYLLABLES for two in SYLLABLES for three in ("", "s", "ed")]
SEQ_LEN, VOCAB = 64, 400


def write_corpus(root: Path, seed: int = 0) -> None:
    rng = random.Random(seed)
    folder = root / "slimpajama" / "chunk1"
    folder.mkdir(parents=True)
    for k in range(4):
        lines = []
        for n in range(60):
            source = ("RedPajamaC4", "RedPajamaBook")[n % 2]
            text = f"{k} {n} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 120)))
            lines.append(json.dumps({"text": text, "meta": {"redpajama_set_name": source}}))
        data = zstandard.ZstdCompressor().compress("\n".join(lines).encode())
        (folder / f"example_train_{k}.jsonl.zst").write_bytes(data)
    for language in ("python", "css"):
        texts = [
            f"def {language}_{n}(x):\n" + "".join(f"    x += {rng.choice(WORDS)}\n" for _ in range(rng.randint(1, 40))) for n in range(80)
        ]
        write_parquet(root / "starcoder" / language / "train-00000-of-00001.parquet", texts)


def write_parquet(path: Path, texts: Sequence[str | None], column: str = "content") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array(texts, pa.string())}), path, row_group_size=50)


def prepare_corpus(root: Path, out: Path, **changes: Any) -> Prepared:
    readers = [SlimPajama(str(root / "slimpajama")), StarCoder(str(root / "starcoder"))]
    arguments = {"tokenizer": None, "label": "test corpus", "progress": lambda line: None}
    settings = {"seq_len": SEQ_LEN, "vocab_size": VOCAB, "holdout": 0.1, "valid_rows": 6}
    arguments |= {name: changes.pop(name) for name in list(changes) if name not in Settings.__dataclass_fields__}
    return prepare(arguments.pop("readers", readers), out, Settings(**(settings | changes)), **arguments)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_corpus(corpus, tmp_path_factory.mktemp("prepared") / "out")
