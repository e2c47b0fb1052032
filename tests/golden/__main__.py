"""Golden losses: 30 steps of each of the three stages, one after the other, in float32 on one CPU thread.

`python -m tests.golden` makes the files beside this one anew (look at `git diff` before you keep them); `python -m tests.golden DIR`
writes them elsewhere, which is what the test compares. The surprise: the data are drawn from raw words of a counter-based generator,
for numpy may change what its distributions give, but not those.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import crystal.__main__  # noqa: F401 (it stores the schema, which composing needs)
from backends.cpu import CpuEngine
from crystal.config import Config, ScaleConfig
from crystal.data.index import IndexWriter
from crystal.data.loader import Loader, resolve_entries
from crystal.data.npy import NpyWriter
from crystal.data.pack import PIECE, Plan
from crystal.data.shards import FORMAT, Prepared, row_dtype
from crystal.data.tokenizer import ADDED_TOKENS
from crystal.engine import TrainSpec
from crystal.mup.plan import derive
from stages.published import CURRICULUM_TOKENS
from stages.recipes import recipe
from tests.small import small_config

HERE = Path(__file__).parent
N_STEPS, SEQ_LEN, BATCH_ROWS, ROWS = 30, 64, 4, 48
LR_FACTOR = 0.3  # of the published rates
EOS, FIRST_WORD, N_WORDS = 2, 3, 61
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": EOS} | {name: FIRST_WORD + N_WORDS + i for i, name in enumerate(ADDED_TOKENS)}
VOCAB_SIZE = FIRST_WORD + N_WORDS + len(ADDED_TOKENS)
TEXT = [f"RedPajama{name}" for name in ("CommonCrawl", "C4", "Github", "ArXiv", "Book", "Wikipedia", "StackExchange")]
CODE = [f"starcoder/{name}" for name in ("css", "html", "javascript", "python")]


def chains(key: int, n_rows: int, length: int) -> np.ndarray:
    """(n_rows, length) words: three times out of four the successor of the word before, a rule of each part's own, else any word."""
    raw = np.random.Philox(key=key).random_raw(n_rows * length).reshape(n_rows, length)
    words, other = np.empty((n_rows, length), np.int64), (raw % N_WORDS).astype(np.int64)
    words[:, 0] = other[:, 0]
    for t in range(1, length):
        successor = (words[:, t - 1] * (2 + key % 5) + key) % N_WORDS
        words[:, t] = np.where(raw[:, t] >> 62 == 0, other[:, t], successor)
    return FIRST_WORD + words


def rows_of(part: str, key: int) -> np.ndarray:
    """Text fills the rows; code has two documents a row and then padding, the room for FIM."""
    width = SEQ_LEN + 1
    rows, here = chains(key, ROWS, width), np.arange(ROWS)
    ends = 20 + (np.random.Philox(key=1000 + key).random_raw(ROWS) % 9).astype(np.int64)
    rows[here, ends] = rows[here, 2 * ends] = EOS
    if part in CODE:
        rows[np.arange(width) > 2 * ends[:, None]] = SPECIAL["<fim_pad>"]
    return rows


def plan_of(rows: np.ndarray, key: int) -> Plan:
    """A document ends at each EOS, and where padding begins; each is the only one of its place."""
    pieces, counts = [], []
    for number, row in enumerate(rows):
        content = row[row != SPECIAL["<fim_pad>"]]
        cuts = np.unique([0, *(np.flatnonzero(content == EOS) + 1), len(content)])
        pieces += [(key, 10 * number + k, 0, length) for k, length in enumerate(np.diff(cuts))]
        counts.append(len(cuts) - 1)
    return Plan(np.array(pieces, PIECE), np.array(counts))


def prepared_data(folder: Path) -> Prepared:
    """Every part that the three stages name, as `crystal.data.prepare` would lay it out."""
    train = {}
    parts = [f"{source}/{half}" for source in TEXT for half in ("even", "odd")] + CODE
    for key, part in enumerate(parts, start=1):
        rows, index = NpyWriter(folder / part / "00000.npy", (SEQ_LEN + 1,), row_dtype(VOCAB_SIZE)), IndexWriter(folder / part)
        rows.append(rows_of(part, key))
        index.append(plan_of(rows_of(part, key), key))
        entries = {name: {"file": f"{part}/{name}.npy", **entry} for name, entry in index.close().items()}
        shards = [{"file": f"{part}/00000.npy", **rows.close()}]
        train[part] = {"rows": ROWS, "fim_room": part in CODE, "shards": shards, "index": entries}
    manifest = {
        "format": FORMAT, "label": "golden", "eos_id": EOS, "tokenizer_sha256": "none",
        "vocab_size": VOCAB_SIZE, "special": SPECIAL, "spec": {"seq_len": SEQ_LEN},
        "train": train, "valid": {}, "files": ["", *parts],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Prepared.open(folder, verify=True)


def composed() -> Config:
    """The configuration as `conf/` has it: of it come the stages and AdamW's constants."""
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config"))
    assert isinstance(config, Config)
    return config


def losses() -> dict[str, list[float]]:
    """Stage -> the loss of each of its steps; weights go from stage to stage, the optimizers begin afresh."""
    config, found, weights = composed(), {}, None
    model = small_config(d_model=64, n_layers=2, n_heads=2, d_ffn=170, vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN, base_width=256)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepared_data(Path(folder))
        for stage in config.stages.values():
            tokens = round(N_STEPS * BATCH_ROWS * SEQ_LEN * CURRICULUM_TOKENS / stage.tokens)
            made = recipe(stage, ScaleConfig("golden", tokens, BATCH_ROWS, SEQ_LEN, LR_FACTOR, log_every=1, valid_every=1, save_every=1))
            assert made.n_steps == N_STEPS
            engine = CpuEngine(TrainSpec(model, derive(model), config.optim, made.schedule, BATCH_ROWS, seed=1), dtype="float32", threads=1)
            if weights is not None:
                engine.model.load_state_dict(weights)
            entries, empty = resolve_entries(made.entries, prepared)
            assert not empty
            loader = Loader(prepared, entries, seed=1, batch_rows=BATCH_ROWS, fim_rate=stage.fim.rate, spm_rate=stage.fim.spm_rate)
            found[stage.name] = [engine.step(batch).loss.item() for batch in engine.feed(loader.batches(0, N_STEPS), N_STEPS)]
            weights = engine.state_dict()
    return found


def main(folder: Path) -> None:
    """Write `folder`/stageN.txt: a header, then one loss a line, each with all its digits."""
    made_with = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}"
    for stage, values in losses().items():
        lines = [
            f"# Losses of the {N_STEPS} steps of stage {stage}, float32, one CPU thread ({made_with}).",
            "# Made anew by `python -m tests.golden`; compared by tests/test_golden.py.", *map(repr, values),
        ]  # fmt: skip
        (folder / f"stage{stage}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
