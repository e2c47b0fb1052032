"""The configuration tree: every combination composes, every number carries a comment, and the numbers are CrystalCoder's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import crystal.__main__  # noqa: F401  puts the schema where Hydra finds it
from crystal.cli import choices, quoted
from crystal.config import Config
from crystal.model.cost import parameters
from stages.published import CURRICULUM_TOKENS, PARAMETERS
from stages.recipes import recipe

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("model", "stage", "backend", "data", "eval", "eval/protocol", "scale", "parametrization")
# d_model x layers, and parameters with CrystalCoder's 32,032 ids.
PRESETS = {
    "proxy": (64, 2, 2_150_056),
    "tiny": (256, 4, 11_359_056),
    "40m": (512, 6, 35_316_732),
    "100m": (768, 10, 95_491_072),
    "260m": (1152, 14, 260_087_808),
    "560m": (1536, 18, 559_208_448),
    "1b": (2048, 24, 1_274_220_528),
    "3b": (2560, 32, 2_599_599_744),
    "7b": (4096, 32, 6_575_278_720),
}


def composed(*overrides: str) -> Config:
    """The configuration of one command line, without running it."""
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=quoted(list(overrides))))
    assert isinstance(config, Config)
    return config


def covering_rows() -> Iterator[list[str]]:
    """Command lines in which every two choices of two groups come together at least once."""
    rows = [frozenset(combinations(row, 2)) for row in product(*([f"{group}={choice}" for choice in choices(group)] for group in GROUPS))]
    missing = set().union(*rows)
    while missing:
        best = max(rows, key=lambda row: len(row & missing))
        missing -= best
        yield sorted(set().union(*best))


@pytest.mark.parametrize("overrides", list(covering_rows()), ids=" ".join)
def test_every_pair_of_choices_composes(overrides: list[str]) -> None:
    config = composed(*overrides, "data.out=DIR" if "data=sample" in overrides else "data.root=DIR")
    chosen = dict(override.split("=") for override in overrides)
    assert (config.model.name, config.scale.name, config.data.name) == (chosen["model"], chosen["scale"], chosen["data"])
    assert config.backend["name"] == chosen["backend"]
    assert list(config.stages) == (["1", "2", "3"] if chosen["stage"] == "all" else [chosen["stage"]])
    several = {"code": ["humaneval", "mbpp"], "none": [], "open_llm": ["arc", "hellaswag", "mmlu", "truthfulqa"]}
    assert list(config.eval.benchmarks) == several.get(chosen["eval"], [chosen["eval"]])
    assert config.eval.protocol.name == chosen["eval/protocol"]
    assert [name for name, stage in config.stages.items() if stage.name != name] == []


def test_the_defaults() -> None:
    config = composed()
    chosen = (config.task, config.model.name, config.scale.name, config.data.name, config.backend["name"], config.run.dir)
    assert chosen == ("train", "tiny", "minutes", "sample", "auto", "runs/tiny-sample")
    assert composed("model=7b").scale.name == "published"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_number_carries_a_comment(path: Path) -> None:
    """On its line, or on the line that opens its block; and the file says what it is before it begins."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("# ") and "@package" not in line for line in lines) or "  # " in lines[1]
    opened: list[tuple[int, bool]] = []  # the blocks around a line: how far they are indented, whether they carry a comment
    for line in (line for line in lines if line.strip() and not line.startswith("#")):
        indent = len(line) - len(line.lstrip())
        opened = [block for block in opened if block[0] < indent]
        code, _, comment = line.partition("  #")
        if re.search(r"[:,\[] *-?\d[\d.e+-]*(?=[\s,}\]]|$)", code):
            assert comment or any(said for _, said in opened), line
        if code.rstrip().endswith(":"):
            opened.append((indent, bool(comment)))


def test_the_comment_rule_sees_a_bare_number(tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("# What it is.\nname: x\nblock:\n  steps: 3\n")
    with pytest.raises(AssertionError, match="steps: 3"):
        test_every_number_carries_a_comment(file)


def test_every_preset_is_named_here() -> None:
    assert set(PRESETS) == set(choices("model"))
    assert PRESETS["7b"][-1] == PARAMETERS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_size(name: str) -> None:
    from crystal.mup.plan import meta_model

    model = composed(f"model={name}", "scale=published", "model.vocab_size=32032").model
    built = sum(parameter.numel() for parameter in meta_model(model).parameters())
    assert (model.d_model, model.n_layers, sum(parameters(model).values())) == PRESETS[name]
    assert built == PRESETS[name][-1]
    head_dim = 32 if name == "proxy" else 128
    assert (model.d_ffn, model.head_dim, model.rotary_dims) == (int(8 * model.d_model / 3), head_dim, head_dim // 4)


# Steps, rates at given steps, and the commonest sources' shares, from the three released params.yaml files.
RELEASED = {
    "1": (79_721, {0: 0.0, 43: 0.006, 86: 0.012, 86 + 294_337: 0.00012408}, {"CommonCrawl": 0.53346, "C4": 0.26650, "Github": 0.04963}),
    "2": (214_387, {0: 0.0, 43: 0.00439125, 86: 0.0087825, 214_387: 0.00013679}, {"StarCoder": 0.62812, "CommonCrawl": 0.19839}),
    "3": (27_728, {0: 0.0, 138: 0.001, 276: 0.002, 27_728: 0.0002}, {"Python": 0.34270, "HTML": 0.18537, "CSS": 0.08793, "C4": 0.01686}),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_stage_is_the_released_one(name: str) -> None:
    steps, rates, shares = RELEASED[name]
    config = composed("model=7b", f"stage={name}")
    stage = config.stages[name]
    made = recipe(stage, config.scale)
    assert (made.n_steps, made.tokens, config.scale.batch_rows, config.scale.seq_len) == (steps, stage.tokens, 2112, 2048)
    assert {step: made.schedule.lr(step) for step in rates} == pytest.approx(rates, rel=1e-12)
    assert {source: round(stage.mixture[source].weight, 5) for source in shares} == shares
    assert sum(entry.weight for entry in made.entries) == pytest.approx(1, abs=1e-12)


def test_the_stages_make_up_the_curriculum() -> None:
    stages = composed("model=7b").stages.values()
    assert sum(stage.tokens for stage in stages) == CURRICULUM_TOKENS == 1_392_061_710_336
    assert [(s.starts_from, s.fim.rate, s.fim.spm_rate) for s in stages] == [(None, 0, 0.5), ("1", 0.9, 0.5), ("2", 0.3, 0.5)]
    slimpajama = [entry.weight for name, entry in composed("stage=2").stages["2"].mixture.items() if name != "StarCoder"]
    assert sum(slimpajama) == pytest.approx(0.37188, abs=1e-5)


def test_minutes_keep_shares_shapes_and_warm_up_fractions() -> None:
    small, whole = composed("scale=minutes"), composed("scale=published")
    factor = small.scale.lr_factor
    for name, stage in small.stages.items():
        ours, theirs = recipe(stage, small.scale), recipe(stage, whole.scale)
        assert ours.tokens / (small.scale.tokens or 1) == pytest.approx(theirs.tokens / CURRICULUM_TOKENS, abs=2e-3), name
        assert [piece.n_steps / ours.n_steps for piece in ours.schedule.pieces] == pytest.approx(
            [piece.n_steps / theirs.n_steps for piece in theirs.schedule.pieces], rel=0.01
        )
        for one, other in zip(ours.schedule.pieces, theirs.schedule.pieces, strict=True):
            assert (one.start, one.end) == pytest.approx((factor * other.start, factor * other.end), rel=1e-12)


def test_tokens_override_the_scale() -> None:
    config = composed("tokens=5e6")
    assert sum(recipe(stage, config.scale).tokens for stage in config.stages.values()) == pytest.approx(5e6, abs=3 * 2048)
