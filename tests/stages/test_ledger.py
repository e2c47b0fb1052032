"""`task=ledger` on a run of three stages: what it says of steps, documents and checkpoints, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crystal.data.readers import SlimPajama, StarCoder
from tests.data.test_hdf5 import as_samples, write_h5


@pytest.fixture
def ask(crystal, tiny_overrides, trained, tmp_path) -> Callable[..., list[dict]]:
    """The jsonl that task=ledger writes."""

    def asked(*arguments: str) -> list[dict]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        result = crystal(*tiny_overrides, "task=ledger", f"run.dir={trained}", f"out={out}", *arguments)
        assert (result.status, result.err) == (0, "")
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return asked


def test_a_step_holds_the_corpus_own_text(ask, corpus):
    readers = SlimPajama(str(corpus / "slimpajama" / "train")), StarCoder(str(corpus / "starcoderdata"))
    documents = [document for reader in readers for file in reader.files() for document in reader.read(file)]
    texts = {(document.file, document.index): document.text for document in documents}
    records = ask("stage=2", "step=7")
    assert {record["sample"] for record in records} == {14, 15} and {record["step"] for record in records} == {7}
    for record in records:
        text = texts[record["file"], record["place"]]
        assert record["text"].lstrip() in text and record["end"] > record["start"] >= 0
        assert record["text"] == text[: len(record["text"])] or record["start"] > 0
    cuts = [ask("stage=2", "step=7", f"rank={rank}", "ranks=2") for rank in (0, 1)]
    assert cuts[0] + cuts[1] == records


def test_a_document_is_seen_where_the_steps_say_so(ask):
    steps = [("2", 0), ("2", 7), ("3", 1)]
    records = [record for stage, step in steps for record in ask(f"stage={stage}", f"step={step}")]
    for one in (records[0], next(record for record in records if record["fim"])):
        seen = ask(f"document={one['file']}:{one['place']}")
        same = [record for record in records if (record["file"], record["place"]) == (one["file"], one["place"])]
        assert [record for record in seen if (record["stage"], record["step"]) in steps] == same


def test_checkpoints_that_have_seen_a_document(ask, crystal, tiny_overrides, trained):
    (early, *_), (late, *_) = ask("stage=1", "step=0"), ask("stage=3", "step=1")
    for one, knowing in ((early, {"stage1", "stage2", "stage3"}), (late, {"stage3"})):
        result = crystal(*tiny_overrides, "task=ledger", f"run.dir={trained}", f"document={one['file']}:{one['place']}")
        steps = re.findall(r"^stage (\d), step (\d+), ", result.out, flags=re.MULTILINE)
        first: dict[str, int] = {stage: int(step) for stage, step in reversed(steps)}
        told, expected, before = re.findall(r"^seen by (.*)$", result.out, flags=re.MULTILINE), [], False
        for stage in "123":
            paths = sorted((trained / f"stage{stage}" / "checkpoints").glob("step-*"))
            expected += [str(path) for path in paths if before or (stage in first and first[stage] < int(path.name[5:]))]
            before = before or stage in first
            assert (stage in first) != (f"stage {stage}: not in its " in result.out)
        assert told == expected and {Path(path).parents[1].name for path in told} >= knowing


def test_a_line_for_each_piece_on_the_terminal(crystal, tiny_overrides, trained):
    result = crystal(*tiny_overrides, "task=ledger", f"run.dir={trained}", "stage=2", "step=0")
    head, *pieces = result.out.splitlines()
    assert (result.status, result.err) == (0, "")
    assert head.startswith("stage 2, step 0, sample 0: ") and ", epoch 0, row " in head
    assert any(" tokens 0 to " in line and '"' in line for line in pieces)
    assert max(map(len, pieces)) < 200


def test_no_torch_and_nothing_prepared_or_written(tiny_overrides, trained, tmp_path):
    arguments = [*tiny_overrides, "task=ledger", f"run.dir={trained}", "stage=2", "step=0"]
    program = f"import sys\nfrom crystal.__main__ import main\nassert main({arguments}) == 0\nassert 'torch' not in sys.modules"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_rows_of_hdf5_files(crystal, tiny_overrides, trained, tmp_path, corpus):
    from crystal.data.shards import Prepared

    prepared = Prepared.open(next(o for o in tiny_overrides if o.startswith("data.out=")).partition("=")[2], verify=False)
    for part in prepared.train:
        view = prepared.rows(part)
        write_h5(tmp_path / "files" / part / "data.h5", as_samples(view[range(len(view))], prepared.fim_ids.pad))
    changed = ("data=", "data.root=", "data.out=", "data.holdout=", "~")
    given = [override for override in tiny_overrides if not override.startswith(changed)]
    given += ["data=hdf5", f"data.root={tmp_path}/files", f"data.out={tmp_path}/out", f"data.tokenizer={corpus}/tokenizer/tokenizer.json"]
    assert crystal(*given, "task=prepare").status == 0
    result = crystal(*given, "task=ledger", f"run.dir={tmp_path}/run", "stage=1", "step=2")
    assert (result.status, result.err) == (0, "")
    assert all(".h5:" in line for line in result.out.splitlines() if line.startswith("  "))
    refused = crystal(*given, "task=ledger", f"run.dir={tmp_path}/run", "document=data.h5:2")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1) and "step=N, which says file and row" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "task=ledger with neither step nor document; expected one of step=N"),
        ("stage=1 step=0 document=a:1", "task=ledger with step and document"),
        ("step=0", "step=0 with 3 stages; expected the stage"),
        ("stage=1 step=6", "step=6 of stage 1; expected 0 to 5"),
        ("stage=1 step=-1", "expected 0 to 5"),
        ("stage=1 step=0 ranks=2", "ranks=2 without rank"),
        ("stage=1 step=0 ranks=3 rank=0", "expected 1 to the 2 rows of a batch"),
        ("stage=1 step=0 ranks=2 rank=2", "rank=2; expected 0 to 1"),
        ("stage=1 step=0 rank=1", "rank=1; expected 0 to 0"),
        ("document=example_train_0.jsonl.zst:1 rank=0", "rank or ranks with document"),
        ("document=example_train_0.jsonl.zst", "expected FILE:PLACE"),
        ("document=example_train_7.jsonl.zst:1", "no input file is example_train_7.jsonl.zst; expected one of 6"),
        ("document=train-00000-of-00001.parquet:1", "4 files end so"),
        ("document=example_train_0.jsonl.zst:99999", "is in no row for training"),
        ("stage=1 step=0 data.out=nowhere", "nowhere has no manifest.json"),
        ("stage=1 step=0 scale.seq_len=32", "holds rows of 64 tokens; expected scale.seq_len=32"),
        ("stage=1 step=0 out=.", "out=. is there already"),
        ("stage=1 step=0 run.seed=2", "was trained on another order (seed differ)"),
        ("stage=1 step=0 scale.batch_rows=1", "was trained on another order (batch_rows differ)"),
    ],
)
def test_what_the_user_can_mend(arguments, words, crystal, tiny_overrides, trained):
    given = {argument.partition("=")[0] for argument in arguments.split()}
    others = [override for override in tiny_overrides if override.partition("=")[0] not in given]
    result = crystal(*others, "task=ledger", f"run.dir={trained}", *arguments.split())
    assert (result.status, len(result.err.splitlines()), result.out) == (2, 1, ""), result
    assert result.err.startswith("error: ") and words in result.err
    assert result.err.count("; ") >= 2


def test_dry_run_reads_nothing(crystal, tiny_overrides):
    result = crystal(*tiny_overrides, "task=ledger", "data.out=nowhere", "document=a:1", "dry_run=true")
    assert result.status == 0 and "would look up document=a:1 in nowhere" in result.out
