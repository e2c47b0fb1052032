"""The curriculum: train a stage, score it, go on to the next; what is complete is skipped.

The surprise: nothing here remembers anything. What has been done is read off the run directory each time, so the same command after
a kill goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from crystal import checkpoint
from crystal.config import Config, UserError
from crystal.data.loader import Batch, Entry, Loader
from crystal.data.shards import Prepared
from crystal.engine import Backend, Engine, LocalBackend, LocalEngine, TrainSpec
from crystal.generate import Completer
from crystal.mup.plan import derive
from crystal.runlog import Metrics, open_sinks, read_json, read_lines, write_json
from crystal.train import Cadence, Diverged, train
from stages.elsewhere import train_elsewhere
from stages.heldout import HELDOUT, write_heldout
from stages.loading import loader_of
from stages.recipes import Recipe, recipe
from stages.record import (
    keep_numbers,
    note_other_bits,
    only_process,
    refuse_other_data,
    refuse_other_model,
    refuse_other_tokenizer,
    run_numbers,
    source_of,
    stage_numbers,
    write_run_record,
)
from stages.scoring import score_checkpoint, write_baselines

VALID_BATCH_ROWS = 8


@dataclass(frozen=True)
class Run:
    """Everything a run is made of."""

    config: Config
    backend: Backend
    prepared: Prepared
    command: list[str]
    scorer: LocalBackend  # where checkpoints are scored, and validated when the backend is none of this process

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)


def run_curriculum(run: Run) -> None:
    """Train and score every configured stage that is not complete. Raises Stopped (after saving) and UserError."""
    with only_process(run.folder):
        rows = {"tokenizer": run.prepared.manifest["tokenizer_sha256"], "rows": run.prepared.fingerprint()}
        keep_numbers(run.folder / "numbers.json", run_numbers(run.config) | {"prepared": rows})
        for stage in run.config.stages.values():
            StageRun(run, recipe(stage, run.config.scale)).complete()


@dataclass
class StageRun:
    """One stage of a run, in `runs/NAME/stageN`."""

    run: Run
    recipe: Recipe

    def __post_init__(self) -> None:
        self.name = self.recipe.stage.name
        self.folder = self.run.folder / f"stage{self.name}"
        self.checkpoints = self.folder / "checkpoints"
        self.metrics = self.run.folder / "metrics.jsonl"
        self.engine: LocalEngine | None = None  # what has trained this stage to its end, in this process

    def complete(self) -> None:
        """Train to the end unless that is done, then score what is not scored."""
        summary = self.folder / "summary.json"
        if summary.exists():
            print(f"stage {self.name}: complete, skipped")
        else:
            self._train_or_diverge(summary)
        if self.run.config.sweep is not None:  # a point is compared by its losses: no weights are kept, nothing is scored
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            return
        last = checkpoint.latest(self.checkpoints)
        if last is None:
            raise UserError(
                f"{summary} without a checkpoint; expected one in {self.checkpoints}; delete {self.folder} to train the stage again"
            )
        if not (self.folder / "scores" / "baselines.json").exists():
            write_baselines(self.folder / "scores" / "baselines.json", self.run.prepared, metrics=self.metrics, stage=self.name)
        self._score(last)

    def _score(self, last: Path) -> None:
        """Score the weights: those of the engine that has just trained them, where it is one of this process, else the checkpoint's."""
        config, prepared, out = self.run.config, self.run.prepared, self.folder / "scores"

        @cache
        def load() -> Completer:
            engine, self.engine = self.engine, None  # let go of, with its optimizer, before anything is generated
            if engine is None:
                return Completer.load(last, device=self.run.scorer.name)
            return Completer.of(engine, config.model, prepared.tokenizer_path, device=self.run.scorer.name)

        score_checkpoint(last, config.eval, out=out, sandbox=config.sandbox, load=load)
        if config.eval.benchmarks:
            write_heldout(out / HELDOUT, load, folder=last, prepared=prepared, attention=config.attention)

    def _train_or_diverge(self, summary: Path) -> None:
        """Train; that a point of a sweep diverges is its result."""
        try:
            self._train()
        except Diverged as error:
            if self.run.config.sweep is None:
                raise
            write_json(summary, {"stage": self.name, "status": "diverged", "steps": self.recipe.n_steps, "step": error.step})
            print(f"{self.run.folder}: diverged at step {error.step:,} of {self.recipe.n_steps:,}, which counts as an infinite loss")

    def _train(self) -> None:
        """Train to the end, wherever the backend can be built, and write the summary."""
        keep_numbers(self.folder / "numbers.json", stage_numbers(self.run.config, self.recipe.stage))
        there = self.run.backend.environment()
        if there is None:
            self.train_here()
        else:
            train_elsewhere(there, self.run.folder, self.name, self.run.command)
            self._validate_last()
        self._summarise()

    def train_here(self) -> None:
        """Train in this process, from the newest checkpoint or the stage's beginning."""
        config, prepared, made = self.run.config, self.run.prepared, self.recipe
        loader, redistributed = loader_of(config, prepared, made)
        engine = self.run.backend.build(self._spec(), before=read_json(self.run.folder / "run.json", {}))
        pending = self._take_up(engine, loader, source_of(config, made.stage))
        write_run_record(self.run.folder, config, engine.facts(), prepared.manifest, self.run.command)
        self._announce(loader, redistributed, engine)
        metrics = self._metrics(engine.step_count)
        state = {
            "stage": self.name, "seed": config.run.seed, "model": asdict(config.model), "optim": asdict(config.optim),
            "facts": engine.facts(), "data": loader.identity(),
        }  # fmt: skip

        def save(pending: list[float]) -> None:
            position = {"samples_seen": engine.step_count * loader.batch_rows, "pending": pending}
            checkpoint.save(self.checkpoints, engine, state | position, tokenizer=prepared.tokenizer_path, keep=config.run.keep_checkpoints)

        try:
            train(
                engine, loader, stage=self.name, n_steps=made.n_steps, metrics=metrics, pending=pending, save=save,
                cadence=Cadence(config.scale.log_every, config.scale.valid_every, config.scale.save_every),
                validate=(lambda: validate(engine, loader)) if isinstance(engine, LocalEngine) else None,
            )  # fmt: skip
        finally:
            metrics.close()
        self.engine = engine if isinstance(engine, LocalEngine) else None

    def _spec(self) -> TrainSpec:
        config = self.run.config
        return TrainSpec(config.model, derive(config.model), config.optim, self.recipe.schedule, config.scale.batch_rows, config.run.seed)

    def _metrics(self, step: int) -> Metrics:
        sinks = open_sinks(self.run.config.run.sinks, self.run.folder)
        return Metrics(self.metrics, stage=self.name, step=step, sinks=sinks)

    def _validate_last(self) -> None:
        """Log the validation that an engine elsewhere does not do, from the checkpoint at the end."""
        last, scorer, n_steps = checkpoint.latest(self.checkpoints), self.run.scorer, self.recipe.n_steps
        assert last is not None
        logged = [line["step"] for line in read_lines(self.metrics) if (line["stage"], line["kind"]) == (self.name, "valid")]
        if n_steps in logged:  # before a kill
            return
        engine = scorer.build(self._spec(), before={})
        engine.load(last, optimizer=False)
        with closing(self._metrics(n_steps)) as metrics:
            loader, _ = loader_of(self.run.config, self.run.prepared, self.recipe)
            metrics.log("valid", n_steps, {"tokens": self.recipe.tokens} | validate(engine, loader))

    def _take_up(self, engine: Engine, loader: Loader, source: Path | None) -> list[float]:
        """Load this stage's newest checkpoint, else the one it starts from; returns the losses not yet logged."""
        last = checkpoint.latest(self.checkpoints)
        if last is not None:
            state = checkpoint.read_state(last)
            refuse_other_data(state["data"], loader.identity(), n_samples=state["samples_seen"], where=str(last))
            engine.load(last, optimizer=True)
            note_other_bits(state["facts"], engine.facts())
            return state["pending"]
        if source is not None:
            refuse_other_model(source, self.run.config.model)
            refuse_other_tokenizer(source, self.run.prepared.manifest["tokenizer_sha256"])
            engine.load(source, optimizer=self.recipe.stage.optimizer == "carry")
            engine.step_count = 0
        return []

    def _announce(self, loader: Loader, redistributed: list[str], engine: Engine) -> None:
        made, facts = self.recipe, engine.facts()
        done = f", going on from step {engine.step_count:,}" if engine.step_count else ""
        print(f"stage {self.name}: {made.n_steps:,} steps, {made.tokens:,} tokens, {facts['dtype']} on {facts['device']}{done}")
        if not isinstance(engine, LocalEngine):
            print("  validated at the end of the stage only, from its checkpoint")
        epochs = loader.mixture.epochs(made.n_steps * loader.batch_rows)
        print("  epochs: " + ", ".join(f"{name} {value:.2f}" for name, value in epochs.items()))
        if redistributed:
            print(f"  empty, their weight given to the others: {', '.join(redistributed)}")

    def _summarise(self) -> None:
        made, view = self.recipe, self.run.prepared.rows
        loader, redistributed = loader_of(self.run.config, self.run.prepared, made)
        source = source_of(self.run.config, made.stage)
        n_samples = made.n_steps * loader.batch_rows
        samples, epochs = loader.mixture.samples(n_samples), loader.mixture.epochs(n_samples)

        def drawn(entries: Sequence[Entry]) -> list[dict[str, Any]]:
            counts = [{"rows": len(view(e.parts, e.slice)), "samples": samples[e.name], "epochs": epochs[e.name]} for e in entries]
            return [asdict(entry) | own for entry, own in zip(entries, counts, strict=True)]

        summary = {
            "stage": self.name, "status": "complete", "steps": made.n_steps, "tokens": made.tokens,
            "init_from": None if source is None else str(source), "optimizer": made.stage.optimizer,
            "checkpoint": None if self.run.config.sweep else str(checkpoint.latest(self.checkpoints)),
            "fim": {"rate": loader.fim_rate, "spm": loader.spm_rate, "style": loader.fim_style},
            "seed": loader.seed, "mixture": drawn(loader.entries), "redistributed": redistributed,
            "changes": [{"first_sample": change.first_sample, "mixture": drawn(change.entries)} for change in loader.changes],
        }  # fmt: skip
        write_json(self.folder / "summary.json", summary)


def validate(engine: LocalEngine, loader: Loader) -> dict[str, Any]:
    """Loss in nats per token and bits per byte of every held-out source, with the attention that the loader's batches ask for.

    Bits per byte = nats per token / ln 2 x tokens / bytes of the held-out documents, so that sources and tokenizers compare.
    """
    losses, bits = {}, {}
    for source, counts in loader.prepared.valid.items():
        loss, labels = engine.evaluate(_valid_batches(loader, source))
        if labels:
            losses[source] = loss / labels
            bits[source] = loss / labels / float(np.log(2)) * counts["tokens"] / counts["text_bytes"]
    return {"loss": losses, "bits_per_byte": bits}


def _valid_batches(loader: Loader, source: str) -> Iterator[Batch]:
    rows = loader.prepared.valid_rows(source)
    for first in range(0, len(rows), VALID_BATCH_ROWS):
        yield loader.batch_of(rows[np.arange(first, min(first + VALID_BATCH_ROWS, len(rows)))])
