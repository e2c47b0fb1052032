"""What the tests of the whole program share: a tiny corpus in the real formats, a run of seconds, and the command line in process.

The surprise: the three are made once a session, so a test that changes one of them works on a copy (`shutil.copytree`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

TEXT_SOURCES = [f"RedPajama{name}" for name in ("CommonCrawl", "C4", "Github", "ArXiv", "Book", "Wikipedia", "StackExchange")]
LANGUAGES = ["python", "html", "javascript", "css"]
WORDS = [one + two for one in ("ka", "to", "mi", "ren", "ul", "sho") for two in ("per", "ing", "dro", "ba", "s")]
VOCAB_SIZE = 352  # 256 bytes, 3 base and 18 added tokens, and what is learned


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-gpu", action="store_true", help="run tests/gpu too, which needs an NVIDIA GPU")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--run-gpu"):
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(
                f"--run-gpu, but torch {torch.__version__} finds no GPU; expected an NVIDIA GPU, its driver and a CUDA build of torch; "
                "leave --run-gpu out, or see `python -m crystal task=doctor`"
            )


class Finished(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


def write_corpus(root: Path, *, documents: int = 24) -> None:
    """`root` as data.root wants it: every source of the three stages, an even and an odd SlimPajama file, and a tokenizer.json."""
    import pyarrow
    import pyarrow.parquet
    import zstandard

    from crystal.data.tokenizer import train_tokenizer

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=40)) for _ in range(2 * documents)]
    chunk = root / "slimpajama" / "train" / "chunk1"
    chunk.mkdir(parents=True)
    for number in range(2):
        records = [
            {"text": f"{source} {number} {text}", "meta": {"redpajama_set_name": source}}
            for source in TEXT_SOURCES
            for text in texts[number::2]
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (chunk / f"example_train_{number}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    for language in LANGUAGES:
        folder = root / "starcoderdata" / language
        folder.mkdir(parents=True)
        table = pyarrow.table({"content": [f"{language}({text})\n" for text in texts]})
        pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    (root / "tokenizer").mkdir()
    train_tokenizer(texts, VOCAB_SIZE, root / "tokenizer" / "tokenizer.json")


@pytest.fixture
def crystal(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """`crystal("task=plan", "model=7b")` is `python -m crystal task=plan model=7b`, in this process."""

    def run(*arguments: str) -> Finished:
        from crystal.__main__ import main

        capsys.readouterr()
        status = main(list(arguments))
        return Finished(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder to give as data.root; see `write_corpus`."""
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


@pytest.fixture(scope="session")
def tiny_overrides(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training run of 6 + 16 + 2 steps of 2 rows of 64 tokens, one to two seconds; give it a run.dir. Its data is prepared once."""
    return [
        "data=crystalcoder", f"data.root={corpus}", "data.decontaminate.action=ignore", "executor.workers=1",
        f"data.out={tmp_path_factory.mktemp('prepared') / 'rows'}", "data.holdout=0.1",
        f"data.vocab_size={VOCAB_SIZE}", f"model.vocab_size={VOCAB_SIZE}", "data.valid_rows=2", "eval=none",
        "eval.max_new_tokens=16", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "model.d_ffn=64",
        "scale.seq_len=64", "scale.batch_rows=2", "scale.save_every=4", "tokens=3072",
        "backend=cpu", "backend.threads=1", "backend.dtype=float32",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of all three stages under `tiny_overrides`, complete."""
    from crystal.__main__ import main

    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*tiny_overrides, f"run.dir={folder}"]) == 0
    return folder
