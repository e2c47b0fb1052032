"""`task=replay` against the numbers of the three released params.yaml files, and against what a training run did.

The surprise: the expected rates are computed here from the released pieces, so nothing of Crystal's schedule is on both sides.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.stages.released import PHASES, needs_released

# Steps, the pieces of the learning rate (start, end, steps) and the FIM rate, as released.
STAGES = {
    "1": (79_721, [(0.0, 0.012, 86), (0.012, 0.00012408, 294_337)], 0.0),
    "2": (214_387, [(0.0, 0.0087825, 86), (0.0087825, 0.00013679, 214_301)], 0.9),
    "3": (27_728, [(0.0, 0.002, 276), (0.002, 0.0002, 27_452)], 0.3),
}
SHARES = {
    "1": {"CommonCrawl": 0.5334581653397988, "Wikipedia": 0.03417123812605512, "StarCoder": 0.0, "Python": 0.0},
    "2": {"CommonCrawl": 0.1983897689052003, "StarCoder": 0.6281175747315507, "Python": 0.0},
    "3": {"Python": 0.34270089587947816, "CSS": 0.08792775542527535, "StarCoder": 0.0334403752024888, "Github": 0.0},
}
BATCH_TOKENS = 2112 * 2048


def read_table(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns of a replay as numbers, and which row is of which stage."""
    with open(path, newline="") as file:
        header, *lines = csv.reader(file)
    return dict(zip(header, np.array(lines, dtype=np.float64).T, strict=True)), [line[0] for line in lines]


def released_rates(stage: str) -> np.ndarray:
    n_steps, pieces, _ = STAGES[stage]
    rates = np.concatenate([start + (end - start) * np.arange(n) / n for start, end, n in pieces])
    return rates[:n_steps]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], list[str]]:
    from crystal.__main__ import main

    out = tmp_path_factory.mktemp("replay") / "steps.csv"
    assert main(["task=replay", f"out={out}"]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return read_table(out)


def test_every_step_of_the_curriculum_is_there(replayed) -> None:
    table, stages = replayed
    assert {name: stages.count(name) for name in STAGES} == {"1": 79_721, "2": 214_387, "3": 27_728}
    assert len(stages) == 321_836
    assert stages == sorted(stages)
    assert (table["step"] == np.concatenate([np.arange(n_steps) for n_steps, _, _ in STAGES.values()])).all()
    assert (np.diff(table["tokens"]) == BATCH_TOKENS).all()
    assert (table["tokens"][0], table["tokens"][-1]) == (BATCH_TOKENS, 1_392_061_710_336)


def test_every_rate_is_the_released_one(replayed) -> None:
    table, _ = replayed
    expected = np.concatenate([released_rates(name) for name in STAGES])
    assert np.abs(table["lr"] - expected).max() < 1e-9
    assert [name for name in table if name.startswith("lr.")] == ["lr.embedding", "lr.vector", "lr.matrix"]
    for name, multiple in (("embedding", 1.0), ("vector", 1.0), ("matrix", 0.0625)):
        assert np.abs(table[f"lr.{name}"] - multiple * expected).max() < 1e-9
        assert (table[f"lr.{name}"] == multiple * table["lr"]).all()


def test_the_shares_sum_to_one_and_the_fim_rates_are_the_stages(replayed) -> None:
    table, stages = replayed
    names = [name for name in table if name.startswith("share.")]
    assert len(names) == 7 + 1 + 4
    assert np.abs(sum(table[name] for name in names) - 1).max() < 1e-12
    for stage, (_, _, fim_rate) in STAGES.items():
        here = np.array(stages) == stage
        assert (table["fim_rate"][here] == fim_rate).all()
        assert (table["spm_rate"][here] == 0.5).all()
        for name, share in SHARES[stage].items():
            assert (table[f"share.{name}"][here] == share).all()


@needs_released
def test_the_released_files_replay_as_the_configuration_does(replayed, crystal, tmp_path: Path) -> None:
    result = crystal("task=replay", f"source={PHASES}", f"out={tmp_path}/steps.csv")
    assert (result.status, result.err) == (0, "")
    assert "total: 321,836 steps, 1,392,061,710,336 tokens" in result.out
    table, stages = read_table(tmp_path / "steps.csv")
    assert stages == replayed[1]
    assert table.keys() == replayed[0].keys()
    assert all((table[name] == column).all() for name, column in replayed[0].items())


def test_what_is_replayed_is_what_was_trained(trained: Path, tiny_overrides, crystal, tmp_path: Path) -> None:
    assert crystal(*tiny_overrides, "task=replay", "model=tiny", "scale=minutes", f"out={tmp_path}/steps.csv").status == 0
    table, stages = read_table(tmp_path / "steps.csv")
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    logged = {(record["stage"], record["step"]): record["lr"] for record in records if record["kind"] == "train"}
    assert logged == {(name, step + 1): lr for name, step, lr in zip(stages, table["step"], table["lr"], strict=True)}
    assert table["tokens"][-1] == len(logged) * 2 * 64


def test_groups_are_named_by_what_is_in_them(crystal, tmp_path: Path) -> None:
    result = crystal("task=replay", "model=tiny", "stage=3", f"out={tmp_path}/steps.csv")
    assert result.status == 0
    assert "x 1 embedding+matrix, x 1 vector" in result.out
    table, stages = read_table(tmp_path / "steps.csv")
    assert set(stages) == {"3"}
    assert (table["lr.embedding+matrix"] == table["lr"]).all()


def test_a_width_whose_multiples_are_rounded_differently_has_one_matrix_group(crystal, tmp_path: Path) -> None:
    result = crystal("task=replay", "model=proxy", "model.d_model=448", "stage=3", f"out={tmp_path}/steps.csv")
    assert (result.status, result.err) == (0, "")
    assert "x 1 embedding, x 1 vector, x 0.571429 matrix" in result.out


def test_dry_run_writes_nothing(crystal, tmp_path: Path) -> None:
    result = crystal("task=replay", "dry_run=true", f"out={tmp_path}/steps.csv")
    assert result.status == 0
    assert "would write 321,836 rows" in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "task=replay without out; expected"),
        ("out=steps.csv source=nosuch.yaml", "nosuch.yaml cannot be read"),
        ("out=steps.csv source=folder", "source=folder has no *.yaml"),
        ("out=steps.csv source=text.yaml", "text.yaml: no model.max_position_embeddings"),
        ("out=steps.csv source=damaged.yaml", "damaged.yaml is no YAML"),
        ("out=steps.csv source=binary.yaml", "binary.yaml is no YAML"),
        ("out=text.yaml/steps.csv tokens=4e6 model=tiny", "the path cannot be used"),
        ("out=folder", "out=folder is there already"),
    ],
)
def test_what_the_user_can_mend(arguments: str, words: str, crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.yaml").write_text("model: {hidden_size: 64}\n")
    Path("damaged.yaml").write_text("model: [1\nb: {")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.rglob("*"))
    result = crystal("task=replay", *arguments.split())
    assert (result.status, len(result.err.splitlines())) == (2, 1), result
    assert result.err.startswith("error: ") and words in result.err
    assert result.err.count("; ") >= 2
    assert sorted(tmp_path.rglob("*")) == before
