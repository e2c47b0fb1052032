"""What the user can mend is said in one line: what was got; what was expected; what to do. The status is 2 and nothing is half-written.

The surprise: every case looks at all files below the current directory before and after, so one that leaves anything behind fails.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import zstandard

from crystal.cli import GROUPS, choices


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(result, *words: str, progress: bool = False) -> None:
    """Status 2 and one line in three parts that names `words`; with `progress`, other lines may stand before it."""
    assert result.status == 2, result
    *before, line = result.err.splitlines()
    assert line.startswith("error: ") and not any(other.startswith(("error:", "Traceback", "Error")) for other in before)
    assert progress or not before, result.err
    assert line.count("; ") >= 2, line
    for word in words:
        assert word in line, line


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Command line, and the words that its error must hold.
SETTINGS = """
model.widht=3                                           | unknown key model.widht, d_model
modle=tiny                                              | unknown key modle, model, scale
foo.bar=1                                               | unknown key foo.bar
+x=3                                                    | unknown key x, mend +x
+model.widht=3                                          | unknown key model.widht, d_model
stages.5.tokens=3                                       | unknown key stages.5.tokens, 1, 2, 3
sweep=nonsense                                          | sweep
backend.threads=2                                       | backend.threads, backend=cpu
backend=cpu backend.nonsense=1                          | backend.nonsense, threads, dtype
backend=cpu backend.dtype=float99                       | backend.dtype=float99, bfloat16
backend=cpu backend.threads=0                           | backend.threads=0, above 0
backend=cpu backend.threads=abc                         | backend.threads, abc, a whole number
backend=cpu backend._target_=backends.tpu.TpuBackend    | backend._target_=backends.tpu.TpuBackend
+eval.benchmarks.humaneval.limitt=3                     | eval.benchmarks.humaneval, limitt
eval.benchmarks.humaneval.limit=-1                      | limit=-1
eval.benchmarks.mbpp.path=missing.jsonl                 | eval.benchmarks.mbpp.path=missing.jsonl, mbpp.jsonl
model.n_layers=abc                                      | model.n_layers=abc, a whole number
scale.batch_rows=1.5                                    | scale.batch_rows=1.5, a whole number
tokens=many                                             | tokens=many, a number
dry_run=maybe                                           | dry_run=maybe, true or false
run.dir=null                                            | run.dir=null, a value
run.dir=                                                | run.dir, empty
run.dir=[1]                                             | run.dir=[1], text
run.dir=${nowhere}                                      | run.dir, nowhere
run.dir=${                                              | run.dir=${, key=value
run.keep_checkpoints=0                                  | run.keep_checkpoints=0, above 0
run.sinks=[bananas]                                     | bananas, tensorboard
run.sinks=3                                             | run.sinks=3, a list
eval.temperature=-1                                     | eval.temperature=-1, greedy
eval.top_p=2                                            | eval.top_p=2, at most 1
eval.ks=[10]                                            | eval.ks=[10] of eval.n_samples=1, raise eval.n_samples
eval.ks=[0]                                             | eval.ks=[0]
eval.workers=0                                          | eval.workers=0, above 0
eval.limit=0                                            | eval.limit=0, above 0
eval.n_samples=2 eval.temperature=0                     | eval.n_samples=2 with eval.temperature=0, one greedy sample
eval/protocol=nonsense                                  | eval/protocol=nonsense, bigcode, lm_eval
eval/protocol=openai                                    | eval/protocol=openai with the benchmark mbpp, how mbpp is asked
eval/protocol=bigcode eval=humaneval_infill             | eval/protocol=bigcode with the benchmark humaneval_infill
eval.protocol.humaneval.shots=2                         | shots=2, 0 or 3
eval=humaneval_plus eval.benchmarks.humaneval_plus.path=missing.jsonl | eval.benchmarks.humaneval_plus.path=missing.jsonl, jsonl
scale.seq_len=512 eval.max_new_tokens=512               | eval.max_new_tokens=512, scale.seq_len=512
data.holdout=0.9                                        | data.holdout=0.9, below 0.5
data.empty_source=ignore                                | data.empty_source=ignore, redistribute
data=crystalcoder                                       | data.root, slimpajama/, starcoderdata/
optim.beta1=1                                           | optim.beta1=1, below 1
optim.weight_decay=-0.1                                 | optim.weight_decay=-0.1
scale.tokens=-5                                         | scale.tokens=-5, above 0
tokens=-5                                               | error: tokens=-5, above 0
tokens=inf                                              | tokens=inf, finite
stages.1.tokens=0                                       | stages.1.tokens=0
stages.1.mixture.C4.weight=0.5                          | stages.1.mixture, 1.233499
stages.1.mixture.C4.slice=[0.5]                         | stages.1.mixture.C4.slice=[0.5]
stages.2.fim.rate=2                                     | stages.2.fim.rate=2
stages.3.lr=[]                                          | stages.3.lr, 119934025728
stages.3.optimizer=keep                                 | stages.3.optimizer=keep, carry
model.d_model=65                                        | error: model.d_model=65; expected, 128 dims, model.d_model=256,512
checkpoint=                                             | error: checkpoint is empty
init_from= stage=2                                      | error: init_from is empty
task=import source=                                     | error: source is empty
task=coordcheck out=                                    | error: out is empty
model.n_heads=3                                         | model.n_heads=3, 256
model.rotary_fraction=0.3                               | model.rotary_fraction=0.3, 38.4, even
model.vocab_size=100 data.vocab_size=400                | model.vocab_size=100, 400
model.seq_len=32                                        | model.seq_len=32, scale.seq_len=
model=100m                                              | scale, minutes, published
devices=3 scale.batch_rows=8                            | devices=3, scale.batch_rows=8
devices=0                                               | devices=0, above 0
attention=causal                                        | attention=causal, full or document
plan.mfu=2                                              | plan.mfu=2
init_from=DIR                                           | init_from=DIR, stage=1, 2 or 3
init_from=DIR stage=2                                   | DIR, checkpoints/step-
stage=2                                                 | stage 2, stage=1, runs/tiny-sample
stage=1,2                                               | stage=1,2; expected one, -m
stage                                                   | stage, key=value
=3                                                      | =3, key=value
stage=[1,2                                              | key=value
model=                                                  | model=, tiny
scale=null                                              | scale=null, minutes
model=7                                                 | model=7; expected, 7b
~model                                                  | model
--nonsense                                              | --nonsense, --cfg
--cfg everything                                        | --cfg everything, job
task=generate                                           | task=generate, prompt=@FILE
task=generate prompt=x                                  | runs/tiny-sample, checkpoint=DIR
task=generate prompt=x checkpoint=DIR                   | DIR, checkpoints/step-
task=generate prompt=x checkpoint=DIR dry_run=true      | DIR, checkpoints/step-
task=generate prompt=@missing.txt                       | prompt=@missing.txt, check the path
task=evaluate                                           | runs/tiny-sample, checkpoint=DIR
task=evaluate checkpoint=DIR                            | DIR, checkpoints/step-
task=report                                             | runs/tiny-sample, run.dir=DIR
"""


@pytest.mark.parametrize("case", [line for line in SETTINGS.splitlines() if line], ids=lambda line: line.partition("|")[0].strip())
def test_a_setting(case: str, crystal, empty: Path) -> None:
    arguments, words = case.split("|")
    assert_refused(crystal(*arguments.split()), *words.strip().split(", "))
    assert files_below(empty) == {}


@pytest.mark.parametrize("group", GROUPS)
def test_a_choice_that_is_not_there(group: str, crystal, empty: Path) -> None:
    assert_refused(crystal(f"{group}=nonsense"), f"{group}=nonsense", *choices(group))
    assert files_below(empty) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(crystal, empty: Path) -> None:
    assert_refused(crystal("backend=cuda"), "backend=cuda", "NVIDIA GPU", "backend=cpu")
    assert files_below(empty) == {}


@pytest.mark.parametrize("refused", ["eval.top_p=2", "task=transfer run.dir=nowhere", "task=coordcheck sweep=lr"])
def test_a_setting_is_refused_before_torch_is_loaded(refused: str, empty: Path) -> None:
    program = f"import sys\nfrom crystal.__main__ import main\nassert main({refused.split()}) == 2 and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120).returncode == 0


# The defaults of FILE.yaml, what else stands in it, what stands in other.yaml, and the words of the error.
FILES = [
    ("[config, _self_]", "model: {widht: 3}", None, "unknown key model.widht, d_model"),
    ("[config, _self_]", "foo: 3", None, "unknown key foo, model, scale"),
    ("[config, _self_]", "model: {d_model: abc}", None, "error: model.d_model, abc, a whole number"),
    ("[config, _self_]", "task: nonsense", None, "task=nonsense, train, plan"),
    ("[config]", "", None, "FILE.yaml with defaults: ['config']; expected, end with _self_"),
    ("[_self_, config]", "", None, "FILE.yaml, begin with config"),
    ("[config, nowhere, _self_]", "", None, "nowhere in the defaults of FILE; expected a file beside it"),
    ("[config, FILE, _self_]", "", None, "FILE.yaml in its own defaults"),
    ("[config, other, _self_]", "", "defaults: [FILE]", "FILE.yaml in its own defaults"),
]


@pytest.mark.parametrize(("defaults", "text", "other", "words"), FILES, ids=[case[0] + case[1] + str(case[2]) for case in FILES])
def test_a_configuration_file(defaults: str, text: str, other: str | None, words: str, crystal, empty: Path) -> None:
    (empty / "FILE.yaml").write_text(f"defaults: {defaults}\n{text}\n")
    if other is not None:
        (empty / "other.yaml").write_text(other)
    before = files_below(empty)
    assert_refused(crystal("config=FILE.yaml", "task=plan"), *words.split(", "))
    assert files_below(empty) == before


def test_two_configuration_files(crystal, empty: Path) -> None:
    assert_refused(crystal("config=a.yaml", "config=b.yaml"), "config=a.yaml config=b.yaml", "one config=FILE")


# What is done to a corpus, prepared rows and a run before the command: all three are copies in the current directory.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def only(pattern: str) -> Path:
    """The first path that fits, from the current directory."""
    return sorted(Path().glob(pattern))[0]


def jsonl(*lines: str) -> None:
    only("corpus/slimpajama/train/*/*1.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress("\n".join(lines).encode()))


def parquet(column: str, values: list[str | None]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({column: pyarrow.array(values, pyarrow.string())}), only("corpus/starcoderdata/css/*"))


GOOD_LINE = '{"text": "a", "meta": {"redpajama_set_name": "RedPajamaC4"}}'
NEW = "run.dir=new data.out=fresh"  # from documents to a first step
AGAIN = "run.dir=new data.out=rows"  # from prepared rows
STAGE_2 = "stage2/checkpoints/step-00000016"
GENERATE, EVALUATE = (f"task={task} prompt=x checkpoint=run/{STAGE_2}" for task in ("generate", "evaluate"))
# Name, what is done, command line, words. The base of every command is `tiny_overrides`, which trains.
BROKEN: list[tuple[str, Callable[[], object], str, str]] = [
    ("no corpus", lambda: None, f"{NEW} data.root=nowhere data.tokenizer=corpus/tokenizer/tokenizer.json", "nowhere/slimpajama/train"),
    ("no chunks", lambda: shutil.rmtree("corpus/slimpajama/train/chunk1"), NEW, "corpus/slimpajama/train, chunk*/*.jsonl.zst"),
    ("no code", lambda: shutil.rmtree("corpus/starcoderdata"), f"{NEW} dry_run=true", "corpus/starcoderdata"),
    ("truncated zst", lambda: cut(only("corpus/slimpajama/*/*/*1.jsonl.zst")), NEW, "example_train_1.jsonl.zst, truncated"),
    ("not JSON", lambda: jsonl(GOOD_LINE, '{"text": '), NEW, "example_train_1.jsonl.zst line 2, not JSON"),
    ("no source", lambda: jsonl('{"text": "a", "meta": {}}'), NEW, "example_train_1.jsonl.zst line 1, redpajama_set_name"),
    ("no text", lambda: jsonl('{"meta": {"redpajama_set_name": "RedPajamaC4"}}'), NEW, "example_train_1.jsonl.zst line 1, text"),
    ("no content", lambda: parquet("code", ["a"]), NEW, "css/train-00000-of-00001.parquet, code, content"),
    ("null content", lambda: parquet("content", ["a", None]), NEW, "css/train-00000-of-00001.parquet, row 1, null"),
    ("not Parquet", lambda: cut(only("corpus/starcoderdata/css/*")), NEW, "css/train-00000-of-00001.parquet, Parquet"),
    ("no tokenizer", lambda: None, f"{NEW} data.tokenizer=none.json", "none.json, tokenizer.json"),
    ("not a tokenizer", lambda: cut(only("corpus/tokenizer/*")), NEW, "corpus/tokenizer/tokenizer.json, not a tokenizer"),
    ("too few ids", lambda: None, f"{NEW} data.vocab_size=300", "352 ids, 300"),
    ("no data target", lambda: None, f"{NEW} data.readers.starcoder._target_=my.Reader", "data.readers.starcoder._target_=my.Reader"),
    ("damaged shard", lambda: flip(only("rows/train/starcoder/css/0*")), AGAIN, "rows/train/starcoder/css/00000.npy, corrupt"),
    ("cut shard", lambda: cut(only("rows/train/starcoder/css/0*")), AGAIN, "rows/train/starcoder/css/00000.npy, bytes"),
    ("missing shard", lambda: only("rows/valid/starcoder/css/0*").unlink(), AGAIN, "rows/valid/starcoder/css/00000.npy, missing"),
    ("cut manifest", lambda: cut(Path("rows/manifest.json")), AGAIN, "rows/manifest.json, JSON"),
    ("other rows", lambda: None, f"{AGAIN} data.holdout=0.2", "rows, holdout, data.out"),
    ("a folder of something else", lambda: None, "run.dir=new data.out=corpus", "corpus, manifest.json"),
    ("other numbers", lambda: None, "run.dir=run scale.lr_factor=3", "run, scale.lr_factor=3.0 (there: 0., run.dir"),
    ("other model", lambda: None, "run.dir=run model.d_model=64", "model.d_model=64, 32"),
    ("other stage", lambda: None, "run.dir=run stages.1.fim.rate=0.5", "run/stage1, fim.rate=0.5, 0.0"),
    ("no stage 1", lambda: [shutil.rmtree(f"run/stage{k}") for k in (1, 2)], "run.dir=run stage=2", "stage 2, run/stage1/checkpoints"),
    ("other shape", lambda: None, f"{AGAIN} stage=3 init_from=run/{STAGE_2} model.d_ffn=32", "model.d_ffn=64, 32"),
    ("no weights to start from", lambda: None, f"{AGAIN} stage=3 init_from=run/stage2", "run/stage2, COMPLETE"),
    ("damaged start", lambda: flip(Path("run", STAGE_2, "weights.pt")), f"{AGAIN} stage=3 init_from=run/{STAGE_2}", "weights.pt, damaged"),
    ("damaged weights", lambda: flip(Path("run", STAGE_2, "weights.pt")), GENERATE, "weights.pt, damaged"),
    ("damaged optimizer", lambda: flip(Path("run", STAGE_2, "optimizer.pt")), EVALUATE, "optimizer.pt, damaged"),
    ("missing weights", lambda: Path("run", STAGE_2, "weights.pt").unlink(), EVALUATE, "weights.pt, whole"),
    ("not complete", lambda: Path("run", STAGE_2, "COMPLETE").unlink(), GENERATE, "COMPLETE"),
    ("too long", lambda: None, "task=generate prompt=x run.dir=run eval.max_new_tokens=64", "max_new_tokens=64, 64 tokens"),
    ("no room to fill in", lambda: None, "task=generate prompt=x suffix=y run.dir=run eval.max_new_tokens=59", "new_tokens=59, at most 58"),
    ("stage 1 is damaged", lambda: (shutil.rmtree("run/stage2"), flip(only("run/stage1/*/*6/weights.pt"))), "run.dir=run", "weights.pt"),
    ("a report of nothing", lambda: None, "task=report run.dir=corpus", "corpus, run.json, run.dir=DIR"),
    ("a file for a folder", lambda: None, "run.dir=rows/manifest.json", "rows/manifest.json, path"),
]


@pytest.fixture
def place(empty: Path, corpus: Path, trained: Path, tiny_overrides: list[str]) -> list[str]:
    """The start of a command line in a directory with copies: corpus/, rows/ (prepared from it), run/ (trained on them)."""
    given = dict(override.split("=") for override in tiny_overrides)
    for source, name in ((corpus, "corpus"), (Path(given["data.out"]), "rows"), (trained, "run")):
        shutil.copytree(source, empty / name)
    return [f"{key}={value}" for key, value in (given | {"data.root": "corpus", "data.out": "rows"}).items()]


@pytest.mark.parametrize(("breaks", "arguments", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_there(breaks: Callable[[], object], arguments: str, words: str, place: list[str], crystal, empty: Path) -> None:
    breaks()
    before = files_below(empty)
    assert_refused(crystal(*place, *arguments.split()), *words.split(", "), progress=True)
    after = files_below(empty)
    assert {name: data for name, data in after.items() if not name.startswith(".fresh.")} == before  # that is work to be taken up
    assert not any(name.endswith("manifest.json") for name in after.keys() - before.keys())


def test_a_source_without_documents_stops_before_the_first_stage(place: list[str], crystal, empty: Path) -> None:
    shutil.rmtree("corpus/starcoderdata/css")
    assert_refused(crystal(*place, *NEW.split()), "CSS", "starcoder/css", "empty_source=redistribute", progress=True)
    assert not (empty / "new").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number: int, place: list[str], crystal, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if "step-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert_refused(crystal(*place, *AGAIN.split(), "stage=1"), "disk is full", "room", "run.dir", progress=True)
    assert list(empty.glob("new/stage1/checkpoints/*")) == list(empty.glob("new/stage1/checkpoints/.*")) == []
    monkeypatch.undo()
    os.chdir(empty)
    assert crystal(*place, *AGAIN.split(), "stage=1").status == 0
