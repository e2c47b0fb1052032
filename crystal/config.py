"""The configuration as typed, validated dataclasses; Hydra's groups in `conf/` fill them.

Every check lives in the `__post_init__` of the class that owns the value, so a bad value stops before torch is imported. The one
surprise: nothing here imports Hydra or OmegaConf, so that the model and the data can be used where they are not installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from crystal.errors import UserError as UserError  # everybody takes it from here
from crystal.errors import require, require_positive
from crystal.evalconfig import ProtocolConfig
from crystal.stageconfig import StageConfig


def refuse_strays(config: Any, owner: str = "") -> None:
    """Raise UserError where `+key=value` has put something on a dataclass of the configuration that is not one of its fields."""
    if isinstance(config, dict):
        for name, value in config.items():
            refuse_strays(value, f"{owner}.{name}")
    if not is_dataclass(config):
        return
    known = {entry.name for entry in fields(config)}
    for name, value in vars(config).items():
        key = f"{owner}.{name}".lstrip(".")
        require(name in known, f"unknown key {key}", f"one of {', '.join(sorted(known))}", f"mend +{key}")
        refuse_strays(value, key)


@dataclass
class ModelConfig:
    """Shape and parametrization of the transformer (DESIGN.md, "CrystalCoder's numbers").

    parametrization: "mup" is CrystalCoder's; "sp" is GPT-2's, for comparison: no width multipliers, 1/sqrt(d) attention, one learning
    rate. depth "completep" divides what a block adds to the residual stream by n_layers / base_layers (Dey et al. 2025, alpha = 1).
    """

    name: str
    d_model: int
    n_layers: int
    n_heads: int
    d_ffn: int
    vocab_size: int
    seq_len: int
    rotary_fraction: float = 0.25
    rotary_base: float = 10000.0
    norm_eps: float = 1e-5
    base_width: int = 256
    embedding_scale: float = 14.6
    output_alpha: float = 2.22
    init_std: float = 0.073
    parametrization: str = "mup"
    depth: str = "none"
    base_layers: int = 4

    def __post_init__(self) -> None:
        for key, known in (("parametrization", ("mup", "sp")), ("depth", ("none", "completep"))):
            require(getattr(self, key) in known, f"model.{key}={getattr(self, key)}", " or ".join(known), f"mend model.{key}")
        sizes = ("d_model", "n_layers", "n_heads", "d_ffn", "vocab_size", "seq_len", "base_width", "base_layers")
        positive = (*sizes, "rotary_base", "norm_eps")
        require_positive("model", {key: getattr(self, key) for key in (*positive, "embedding_scale", "output_alpha", "init_std")})
        require(
            self.d_model % self.n_heads == 0,
            f"model.n_heads={self.n_heads}",
            f"a divisor of model.d_model={self.d_model}",
            f"take n_heads={max(1, self.d_model // 128)} for heads of {self.d_model // max(1, self.d_model // 128)} dims",
        )
        require(
            0 < self.rotary_fraction <= 1,
            f"model.rotary_fraction={self.rotary_fraction}",
            "a fraction above 0 and at most 1",
            "CrystalCoder has 0.25",
        )
        dims = self.head_dim * self.rotary_fraction
        require(
            dims == int(dims) and int(dims) % 2 == 0,
            f"model.rotary_fraction={self.rotary_fraction} of {self.head_dim} head dims is {dims:g} dims",
            "an even number of dims (they rotate in pairs)",
            f"take rotary_fraction={max(2, 2 * round(dims / 2)) / self.head_dim:g}",
        )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def rotary_dims(self) -> int:
        return int(self.head_dim * self.rotary_fraction)

    @property
    def width_mult(self) -> float:
        """muP's m: how much wider than the base model."""
        return self.d_model / self.base_width

    @property
    def output_scale(self) -> float:
        """On the logits."""
        return self.output_alpha / self.width_mult if self.parametrization == "mup" else self.output_alpha

    @property
    def attention_scale(self) -> float:
        """On the products of queries and keys: 1/d, muP's, instead of 1/sqrt(d)."""
        return 1.0 / self.head_dim if self.parametrization == "mup" else self.head_dim**-0.5

    @property
    def depth_mult(self) -> float:
        """How much deeper than the base model, where depth is scaled."""
        return self.n_layers / self.base_layers if self.depth == "completep" else 1.0

    @property
    def residual_scale(self) -> float:
        """On what an attention or ffn block adds to the residual stream."""
        return 1.0 / self.depth_mult

    @property
    def init_cut_stds(self) -> float:
        """Initial normals are cut off at so many standard deviations: 2 in CrystalCoder, not at all in GPT-2."""
        return 2.0 if self.parametrization == "mup" else math.inf


@dataclass
class ScaleConfig:
    """How much of the published run is done: tokens, batch, sequence length, and how often to log, evaluate and save."""

    name: str
    tokens: int | None  # of all three stages together; null: the published total
    batch_rows: int
    seq_len: int
    lr_factor: float
    log_every: int
    valid_every: int
    save_every: int

    def __post_init__(self) -> None:
        counts = ("batch_rows", "seq_len", "lr_factor", "log_every", "valid_every", "save_every")
        require_positive("scale", {key: getattr(self, key) for key in counts})
        if self.tokens is not None:
            require_positive("scale", {"tokens": self.tokens})


@dataclass
class AdamWConfig:
    """AdamW's constants; the learning rate is the stage's."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-9
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for key, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(0 <= value < 1, f"optim.{key}={value}", "a value from 0 to below 1", "CrystalCoder has 0.9 and 0.95")
        require_positive("optim", {"eps": self.eps, "clip_norm": self.clip_norm})
        require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay}", "a value of at least 0", "CrystalCoder has 0.1")


@dataclass
class DecontaminateConfig:
    """Documents that hold a problem of a benchmark: which benchmarks (by `_target_`; null: not this one), how many words in a row make
    a hit, and whether such documents are left out, reported only, or not looked for.
    """

    against: dict[str, Any] = field(default_factory=dict)
    ngram: int = 10
    action: str = "drop"

    def __post_init__(self) -> None:
        require(6 <= self.ngram <= 32, f"data.decontaminate.ngram={self.ngram}", "6 to 32 words", "GPT-3 had 13, StarCoder 10")
        known = ("drop", "report", "ignore")
        require(self.action in known, f"data.decontaminate.action={self.action}", " or ".join(known), "mend data.decontaminate.action")


@dataclass
class DataConfig:
    """Where documents come from and where the prepared rows go.

    format: "documents" for what `readers` read; "hdf5" for rows that files below `root` hold already, which stay there.
    """

    name: str
    label: str
    out: str
    readers: dict[str, Any]
    vocab_size: int
    format: str = "documents"
    tokenizer: str | None = None
    root: str | None = None
    harvest: dict[str, Any] | None = None
    holdout: float = 0.01
    valid_rows: int = 16
    packing: str = "split"
    fim_room: bool = True
    on_broken: str = "stop"
    dedup: str | None = None
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    empty_source: str = "error"
    verify: bool = True

    def __post_init__(self) -> None:
        require(0 < self.holdout < 0.5, f"data.holdout={self.holdout}", "a share above 0 and below 0.5", "0.01 holds out one in 100")
        require_positive("data", {"vocab_size": self.vocab_size, "valid_rows": self.valid_rows})
        require(
            self.empty_source in ("error", "redistribute"),
            f"data.empty_source={self.empty_source}",
            "error or redistribute",
            "mend data.empty_source",
        )
        require(self.format in ("documents", "hdf5"), f"data.format={self.format}", "documents or hdf5", "mend data.format")
        rows = self.format == "documents" or (self.packing, self.fim_room, self.on_broken, self.dedup) == ("split", True, "stop", None)
        require(rows, f"data={self.name}, whose rows are taken as they are", "no packing, fim_room, on_broken, dedup", "leave them out")
        holds = {"documents": "slimpajama/ and starcoderdata/", "hdf5": "*.h5, or folders of them"}[self.format]
        given = self.root is not None or (self.harvest is not None and self.format == "documents")
        require(given, f"data={self.name} without data.root", f"the folder that holds {holds}", "give data.root=DIR")
        made = self.tokenizer is not None or self.format == "documents"
        require(made, f"data={self.name} without data.tokenizer", "the tokenizer.json of the files", "give data.tokenizer=FILE")


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: temperature 0 is greedy; batch_size sequences at once."""

    max_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int


@dataclass
class EvalConfig:
    """What is scored after a stage, how its problems are asked, how completions are drawn and judged."""

    protocol: ProtocolConfig
    benchmarks: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    max_new_tokens: int = 128
    temperature: float = 0.2
    top_p: float = 0.95
    n_samples: int = 1
    ks: list[int] | None = None
    batch_size: int = 41
    timeout_s: float = 3.0
    workers: int | None = None
    seed: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        counts = ("max_new_tokens", "n_samples", "batch_size", "timeout_s")
        require_positive("eval", {key: getattr(self, key) for key in counts})
        require(self.temperature >= 0, f"eval.temperature={self.temperature}", "0 (greedy) or more", "CrystalCoder used 0.2")
        require(self.device in ("auto", "cpu", "cuda"), f"eval.device={self.device}", "auto, cpu or cuda", "mend eval.device")
        require(0 < self.top_p <= 1, f"eval.top_p={self.top_p}", "a share above 0 and at most 1", "1 keeps every token")
        require_positive("eval", {key: value for key in ("workers", "limit") if (value := getattr(self, key)) is not None})
        got = f"eval.n_samples={self.n_samples} with eval.temperature=0"
        require(self.n_samples == 1 or self.temperature > 0, got, "one greedy sample", "raise eval.temperature, or leave n_samples out")
        got, expected = f"eval.ks={self.ks} of eval.n_samples={self.n_samples}", "pass@k for k from 1 to the samples that there are"
        require(all(1 <= k <= self.n_samples for k in self.ks or [1]), got, expected, "mend eval.ks, or raise eval.n_samples")

    @property
    def pass_ks(self) -> list[int]:
        """The k of pass@k: those asked for, or of 1, 10 and 100 those for which there are samples."""
        return sorted(set(self.ks)) if self.ks else [k for k in (1, 10, 100) if k <= self.n_samples]

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.batch_size)


@dataclass
class PlanConfig:
    """task=plan: what one device is taken to do, and how many rows it holds at once."""

    device_flops_per_s: float
    mfu: float
    rows_per_device: int

    def __post_init__(self) -> None:
        require_positive("plan", {"device_flops_per_s": self.device_flops_per_s, "rows_per_device": self.rows_per_device})
        require(0 < self.mfu <= 1, f"plan.mfu={self.mfu}", "a share above 0 and at most 1", "0.45 is good on GPUs")


@dataclass
class RunConfig:
    """Where the run lives and what its seeds are."""

    dir: str
    seed: int = 1
    keep_checkpoints: int = 2
    sinks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.dir.strip() != "", "run.dir is empty", "a folder", "give run.dir=DIR, or leave it out")
        require_positive("run", {"keep_checkpoints": self.keep_checkpoints})
        unknown = sorted(set(self.sinks) - {"tensorboard", "wandb"})
        require(not unknown, f"run.sinks={self.sinks}", "some of [tensorboard, wandb]", f"drop {', '.join(unknown)}")


@dataclass
class Config:
    """The whole configuration: one field a Hydra group, and the few settings that belong to none."""

    task: str
    run: RunConfig
    model: ModelConfig
    scale: ScaleConfig
    stages: dict[str, StageConfig]
    optim: AdamWConfig
    data: DataConfig
    backend: dict[str, Any]
    executor: dict[str, Any]
    eval: EvalConfig
    plan: PlanConfig
    coordcheck: dict[str, Any]
    attention: str = "full"
    tokens: float | None = None
    prompt: str | None = None
    suffix: str | None = None
    checkpoint: str | None = None
    init_from: str | None = None
    sweep: str | None = None
    source: str | None = None
    out: str | None = None
    format: str = "hf"
    dtype: str = "float32"
    step: int | None = None
    document: str | None = None
    rank: int | None = None
    ranks: int = 1
    devices: int = 1
    sandbox: str = "auto"
    benchmark: str | None = None
    samples: str | None = None
    problems: str | None = None
    checkpoints: list[str] = field(default_factory=list)
    dry_run: bool = False

    def __post_init__(self) -> None:
        self._refuse_unlike_sizes()
        self._refuse_bad_devices()
        require(self.attention in ("full", "document"), f"attention={self.attention}", "full or document", "mend attention")
        known = ("auto", "bubblewrap", "namespaces", "seccomp", "unsafe")
        require(self.sandbox in known, f"sandbox={self.sandbox}", " or ".join(known), "mend sandbox")
        for key in ("checkpoint", "init_from", "source", "out", "samples", "problems"):
            path = getattr(self, key)
            require(path is None or path.strip() != "", f"{key} is empty", "a path", f"give {key}=PATH, or leave it out")
        require(
            self.init_from is None or len(self.stages) == 1,
            f"init_from={self.init_from} with {len(self.stages)} stages",
            "one stage to start from a checkpoint",
            "name it with stage=1, 2 or 3",
        )
        if self.tokens is not None:
            require_positive("", {"tokens": self.tokens})
            self.scale = replace(self.scale, tokens=int(self.tokens))

    def _refuse_unlike_sizes(self) -> None:
        require(
            self.model.vocab_size >= self.data.vocab_size,
            f"model.vocab_size={self.model.vocab_size}",
            f"at least the tokenizer's {self.data.vocab_size} (data.vocab_size)",
            f"give model.vocab_size={self.data.vocab_size}",
        )
        require(
            self.model.seq_len == self.scale.seq_len,
            f"model.seq_len={self.model.seq_len}",
            f"scale.seq_len={self.scale.seq_len}, the length of the rows",
            "give scale.seq_len, which sets both",
        )
        require(
            self.task != "train" or not self.eval.benchmarks or self.eval.max_new_tokens < self.model.seq_len,
            f"eval.max_new_tokens={self.eval.max_new_tokens}",
            f"fewer than scale.seq_len={self.scale.seq_len}, so that there is room for a prompt",
            "lower it, or give eval=none",
        )

    def _refuse_bad_devices(self) -> None:
        require_positive("", {"devices": self.devices})
        require(
            self.scale.batch_rows % self.devices == 0,
            f"devices={self.devices}",
            f"a divisor of scale.batch_rows={self.scale.batch_rows}, so that the devices can share a batch",
            "mend devices or scale.batch_rows",
        )
        require(
            self.devices == 1 or self.task == "plan",
            f"devices={self.devices} with task={self.task}",
            "task=plan: this version trains on one device",
            "leave devices out, or give task=plan",
        )
