"""ModelZoo's params.yaml to Crystal's words and back: the three released files, and one of another width that needs no shared data.

The surprise: EXAMPLE's derived numbers are written out by hand (width multiplier 4, 8 layers), so the reader's checks have something to
be checked against.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from crystal.config import Config, UserError
from crystal.runlog import flattened
from stages.params_yaml import cluster
from stages.params_yaml.names import FIXED, OPTIONAL, name_of
from stages.params_yaml.read import read
from stages.params_yaml.write import written
from tests.stages.released import PHASES, needs_released
from tests.test_conf import PRESETS, composed

EXAMPLE = """
train_input:
  data_processor: GptHDF5MapDataProcessor
  batch_size: 96
  vocab_size: 32032
  shuffle_seed: 1
  mixture:
  - {data_dir: /data/SlimPajama/ArXiv_train_packed_part1of2, weight: 0.05}
  - {data_dir: /data/SlimPajama/Book_train_packed_part1of2/, weight: 0.05}
  - {data_dir: /data/SlimPajama/C4_train_packed_part1of2, weight: 0.05}
  - {data_dir: /data/SlimPajama/CommonCrawl_train_packed_part1of2, weight: 0.05, data_subset: 0.25-0.5}
  - {data_dir: /data/SlimPajama/Github_train_packed_part1of2, weight: 0.05}
  - {data_dir: /data/SlimPajama/StackExchange_train_packed_part1of2, weight: 0.05}
  - {data_dir: /data/SlimPajama/Wikipedia_train_packed_part1of2, weight: 0.1}
  - {data_dir: /elsewhere/StarCoder_fim_shuffled, weight: 0.6}
eval_input: {data_dir: [/data/a, /data/b], batch_size: 32}
model:
  hidden_size: 1024
  num_hidden_layers: 8
  num_heads: 8
  filter_size: 2730
  vocab_size: 32032
  max_position_embeddings: 1024
  rotary_dim: 64
  layer_norm_epsilon: 1e-5
  embeddings_scale: 10.0
  output_logits_scale: 0.75
  attention_dropout_rate: 0.0
  dropout_rate: 0.0
  attention_type: scaled_dot_product
  attention_kernel: optimized_beta
  nonlinearity: swiglu
  position_embedding_type: rotary
  use_position_embedding: true
  scale_glu_initialization: true
  scale_qk_dot_by_d: true
  share_embedding_weights: true
  use_bias_in_output: false
  use_ffn_bias: true
  use_ffn_bias_in_attention: true
  use_projection_bias_in_attention: true
  loss_scaling: batch_size
  loss_weight: 0.0009765625
  weight_initialization_seed: 7
  embedding_initializer: {name: truncated_normal, mean: 0.0, std: 0.08, a: -0.16, b: 0.16}
  initializer: {name: truncated_normal, mean: 0.0, std: 0.04, a: -0.08, b: 0.08}
  output_layer_initializer: {name: truncated_normal, mean: 0.0, std: 0.01, a: -0.02, b: 0.02}
optimizer:
  optimizer_type: AdamW
  beta1: 0.8
  beta2: 0.99
  eps: 1e-8
  correct_bias: true
  weight_decay_rate: 0.05
  max_gradient_norm: 0.5
  log_summaries: true
  adjust_learning_rate: {decoder_kernel: 0.25}
  learning_rate:
  - {scheduler: Linear, initial_learning_rate: 0.0, end_learning_rate: 0.01, steps: 100}
  - {scheduler: Linear, initial_learning_rate: 0.01, end_learning_rate: 0.001, decay_steps: 900}
runconfig:
  {max_steps: 700, seed: 7, log_steps: 5, checkpoint_steps: 50, num_csx: 2, mgmt_address: null, job_labels: [a=b], precision_opt_level: -1,
   mode: train, target_device: CSX, validate_only: true, use_cs_grad_accum: true, wrk_memory_gi: 100, num_wgt_servers: null}
"""
# What its runconfig says of the cluster.
OPTIONS = {
    "cluster.num_csx": 2, "cluster.mgmt_address": None, "cluster.job_labels": ["a=b"], "cluster.max_wgt_servers": 0,
    "csx.memory_gi.wrk": 100, "csx.micro_batch_size": "auto", "device": "csx", "mode": "validate",
}  # fmt: skip
UNKNOWN = [
    "train_input.data_processor", "train_input.shuffle_seed", "eval_input.data_dir", "eval_input.batch_size", "model.attention_kernel",
    "optimizer.log_summaries", "runconfig.precision_opt_level", "runconfig.mode",
]  # fmt: skip


@pytest.fixture(scope="module")
def config() -> Config:
    return composed("model=7b")


def example(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """EXAMPLE in a file, with values changed at dotted keys; None takes the key away."""
    document = yaml.safe_load(EXAMPLE.replace("1e-", "1.0e-"))
    for key, value in (changes or {}).items():
        *path, name = key.split(".")
        node = document
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if value is None:
            del node[name]
        else:
            node[name] = value
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def assert_round_trip(path: Path, config: Config) -> None:
    """Every key is understood or listed as not; what is understood is written with the very value that was read."""
    params, unknown = read(path, config)
    before = dict(flattened(yaml.safe_load(path.read_text())))
    after = dict(flattened(yaml.safe_load(yaml.safe_dump(written(params)))))
    understood = before.keys() - set(unknown)
    assert understood | set(unknown) == before.keys()
    assert {key: after[key] for key in understood} == {key: before[key] for key in understood}
    assert {key: type(after[key]) for key in understood} == {key: type(before[key]) for key in understood}
    assert all(key.rpartition(".")[2] in OPTIONAL for key in after.keys() - understood - cluster.KEYS)


@needs_released
@pytest.mark.parametrize(("phase", "n_keys", "n_unknown"), [("1", 143, 39), ("2", 145, 40), ("3", 123, 28)])
def test_a_released_file_goes_there_and_back(phase: str, n_keys: int, n_unknown: int, config: Config) -> None:
    path = PHASES / f"phase{phase}.yaml"
    assert_round_trip(path, config)
    params, unknown = read(path, config)
    assert (len(list(flattened(yaml.safe_load(path.read_text())))), len(unknown)) == (n_keys, n_unknown)
    assert not [key for key in unknown if key.startswith("optimizer.") and key != "optimizer.log_summaries"]
    # What the configuration says of itself is the same, and so is what it would write.
    ours = (config.model, config.optim, config.stages[phase], config.run.seed)
    assert (params.model, params.optim, params.stage, params.seed) == ours
    assert written(replace(params, folders={})) == written(params)


def test_another_file_goes_there_and_back(config: Config, tmp_path: Path) -> None:
    path = example(tmp_path)
    assert_round_trip(path, config)
    params, unknown = read(path, config)
    assert (unknown, params.backend) == (UNKNOWN, OPTIONS)
    model = (params.model.name, params.model.width_mult, params.model.base_width, params.model.output_alpha, params.model.rotary_fraction)
    assert model == ("1024x8", 4, 256, 3.0, 0.5)
    stage = params.stage
    assert (stage.name, stage.starts_from, stage.tokens, stage.fim.rate) == ("2", "1", 700 * 96 * 1024, 0.9)
    assert [(piece.start, piece.end, piece.tokens) for piece in stage.lr] == [(0, 0.01, 9_830_400), (0.01, 0.001, 88_473_600)]
    assert (stage.mixture["CommonCrawl"].slice, stage.mixture["StarCoder"].fim) == ([0.25, 0.5], True)
    assert (params.scale.batch_rows, params.scale.log_every, params.scale.save_every, params.seed) == (96, 5, 50, 7)


@pytest.mark.parametrize("d_model", [384, 640, 7552])
def test_widths_whose_multiplier_is_no_power_of_two(d_model: int, crystal, tmp_path: Path) -> None:
    """The derived numbers are rounded then; what is written is read back as the same configuration."""
    changes = ("model=7b", f"model.d_model={d_model}", "model.n_layers=3", "stage=3")
    config, path = composed(*changes), tmp_path / "params.yaml"
    assert crystal("task=export", "format=params", *changes, f"out={path}").status == 0
    params, unknown = read(path, config)
    assert (params.model, params.stage, params.optim, unknown) == (config.model, config.stages["3"], config.optim, [])


@pytest.mark.parametrize("key", [key for key in FIXED if key.rpartition(".")[2] not in OPTIONAL])
def test_what_crystal_fixes_must_be_so(key: str, config: Config, tmp_path: Path) -> None:
    fixed = FIXED[key]
    wrong = not fixed if isinstance(fixed, bool) else 0.1 if isinstance(fixed, float) else "other"
    with pytest.raises(UserError, match=re.escape(f"{key}={wrong}; expected {fixed}, as Crystal always does it; mend {key}")):
        read(example(tmp_path, {key: wrong}), config)
    with pytest.raises(UserError, match=re.escape(f"no {key}; expected")):
        read(example(tmp_path, {key: None}), config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer.loss_scaling_factor", "dynamic"), ("runconfig.num_steps", 5), ("runconfig.num_epochs", 1)],
)
def test_what_may_be_left_out_must_not_say_otherwise(key: str, value: Any, config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{key}={value}; expected {FIXED[key]}")):
        read(example(tmp_path, {key: value}), config)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.initializer.std", 0.08, "model.initializer.std=0.08; expected 0.04, by the file's other values"),
        ("model.initializer.a", -0.09, "model.initializer.a=-0.09; expected -0.08"),
        ("model.output_layer_initializer.std", 0.02, "expected 0.01"),
        ("model.embedding_initializer.b", 0.2, "expected 0.16"),
        ("model.embedding_initializer.name", "normal", "expected truncated_normal"),
        ("model.loss_weight", 1.0, "expected 0.0009765625"),
        ("model.weight_initialization_seed", 8, "expected 7"),
        ("train_input.vocab_size", 50257, "expected 32032"),
        ("optimizer.adjust_learning_rate.decoder_kernel", 0.125, "model.initializer.a=-0.08; expected -0.0565"),
        ("optimizer.adjust_learning_rate.decoder_kernel", 0.3, "with a whole base width"),
        ("optimizer.adjust_learning_rate.decoder_kernel", 0, "decoder_kernel=0; expected a finite number above 0"),
        ("optimizer.adjust_learning_rate", None, "no optimizer.adjust_learning_rate.decoder_kernel"),
        ("optimizer.learning_rate.0.scheduler", "CosineDecay", "optimizer.learning_rate.0.scheduler=CosineDecay; expected Linear"),
        ("optimizer.learning_rate.0.decay_steps", 99, "expected 100"),
        ("optimizer.learning_rate.0.base_lr", 0.5, "expected 0.0"),
        ("optimizer.learning_rate.1.decay_steps", None, "no optimizer.learning_rate.1.decay_steps"),
        ("optimizer.learning_rate.1.decay_steps", 599, "stages.2.lr covers 68714496 tokens"),
        ("optimizer.learning_rate.1.end_learning_rate", float("inf"), "expected a number"),
        ("optimizer.learning_rate", 0.01, "no list optimizer.learning_rate"),
        ("optimizer.beta1", "high", "optimizer.beta1=high; expected a number"),
        ("optimizer.beta1", 1.0, "optim.beta1=1.0; expected a value from 0 to below 1"),
        ("model.hidden_size", 0, "model.hidden_size=0; expected a finite number above 0"),
        ("model.hidden_size", 1024.5, "model.hidden_size=1024.5; expected a whole number"),
        ("model.num_heads", True, "model.num_heads=True; expected a whole number"),
        ("runconfig.max_steps", None, "no runconfig.max_steps"),
        ("train_input.mixture", None, "no list train_input.mixture"),
        ("train_input.mixture.0.weight", 0.5, "weights sum to 1.45"),
        ("train_input.mixture.0.data_dir", "/data/mine", "data_dir=/data/mine; expected .../NAME_train_packed"),
        ("train_input.mixture.0.data_dir", "/data/Book_train_packed_part1of2", "expected each source once"),
        ("train_input.mixture.0.data_dir", "/data/Poems_train_packed", "expected that of one of the stages 1, 2, 3"),
        ("train_input.mixture.0.data_subset", "0.0-0.1,0.2-0.3", "expected one range such as 0.0-0.1"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: Any, words: str, config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        read(example(tmp_path, {key: value}), config)
    line = str(refusal.value)
    assert words in line and line.startswith(f"{tmp_path}/params.yaml: ") and line.count("; ") >= 2 and "\n" not in line, line


def test_a_stage_can_be_named_where_the_mixture_is_new(tmp_path: Path) -> None:
    changes = {
        "train_input.mixture.0.data_dir": "/data/s9_fim_0.5/java",
        "train_input.mixture.7.data_dir": "/data/s9_fim_0.5/x/python/",
        "train_input.mixture.2.data_dir": "/data/s9_fim_0.5/C4_train_packed",
    }
    path = example(tmp_path, changes)
    params, _ = read(path, composed("stage=3"))
    assert (params.stage.name, params.stage.fim.rate) == ("3", 0.5)
    assert params.stage.mixture["Python"].parts == "starcoder/python"
    assert params.stage.mixture["starcoder/java"].fim and not params.stage.mixture["C4"].fim
    assert_round_trip(path, composed("stage=3"))
    path = example(tmp_path, changes | {"train_input.mixture.1.data_dir": "/data/s9_fim_0.7/css"})
    with pytest.raises(UserError, match=r"folders of FIM rates 0\.5, 0\.7; expected one rate a stage"):
        read(path, composed("stage=3"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_has_the_name_of_the_preset_of_its_shape(preset: str) -> None:
    model = composed(f"model={preset}", "scale=published").model
    assert name_of(replace(model, name="other", norm_eps=0.1)) == preset
    assert name_of(replace(model, d_ffn=model.d_ffn + 1)) == f"{model.d_model}x{model.n_layers}"
