"""The tasks of the command line, where configuration, data, backend and curriculum meet.

This is the only place below `__main__` that holds the whole configuration; everything further down gets what it needs. The surprise:
what needs torch is imported where it is used, so that a task that is refused has not waited for it.
"""

from __future__ import annotations

import pkgutil
import sys
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from benchmarks.code.execution import Limits, Pool
from benchmarks.code.problems import BenchmarkAbsent
from benchmarks.code.protocols import asked
from crystal import machine
from crystal.config import Config, DataConfig, UserError, require
from crystal.data.adopt import adopt
from crystal.data.decontaminate import Decontaminator, Problem
from crystal.data.hdf5 import listed
from crystal.data.prepare import Settings, prepare
from crystal.data.readers import Reader
from crystal.data.shards import Prepared
from crystal.model.cost import memory_bytes, train_flops_per_token
from crystal.runlog import clock, read_json, write_text
from stages.loading import loader_of
from stages.recipes import recipe

if TYPE_CHECKING:
    from crystal.engine import Backend, LocalBackend

LOCAL = {"cpu": "backends.cpu.CpuBackend", "cuda": "backends.cuda.CudaBackend"}


def train(config: Config, composed: DictConfig, command: list[str]) -> None:
    """Prepare, train every stage that is not complete, score each, write the report."""
    from stages.curriculum import Run, run_curriculum
    from stages.record import refuse_bad_start

    backend = chosen_backend(config)
    if config.backend.get("mode") in ("compile", "validate"):
        from stages.validate import validate

        return validate(config)
    if backend.environment() is not None:  # refused now, not when the data are prepared, or a stage has been trained
        from crystal.mdl import packages

        packages()
    refuse_too_large(config, backend)
    refuse_bad_start(config)
    refuse_bad_benchmarks(config)
    if config.dry_run:
        from stages.plan import show_run

        refuse_missing_corpus(config)
        show_run(config, backend, readers_of(config.data)) if config.sweep is None else show_point(config, backend)
        return
    if status := point_status(config):
        print(f"{config.run.dir}: {status}, skipped")
        return
    prepared = prepared_data(config)
    for stage in config.stages.values():  # a source without rows stops all stages, not only its own
        loader_of(config, prepared, recipe(stage, config.scale))
    write_text(Path(config.run.dir) / "config.yaml", OmegaConf.to_yaml(composed, resolve=True))
    run_curriculum(Run(config, backend, prepared, command, scoring_backend(config)))
    if config.sweep is None:
        from stages.reporting import report

        report(config)


def point_status(config: Config) -> str | None:
    """How a point of a sweep ended before: "complete" or "diverged"; None where it did not, and outside of sweeps."""
    ends = [read_json(path, {}) for path in Path(config.run.dir).glob("stage*/summary.json")] if config.sweep is not None else []
    return str(ends[0]["status"]) if ends else None


def show_point(config: Config, backend: Backend) -> None:
    """`-m sweep=NAME dry_run=true`: a line for each point; it leaves its losses, no checkpoints and no scores."""
    (made,) = [recipe(stage, config.scale) for stage in config.stages.values()]
    rate, status = backend.flops_per_s(), point_status(config)
    about = f", about {clock(made.tokens * train_flops_per_token(config.model) / rate)}" if rate else ""
    todo = f"{status}, would be skipped" if status else f"would take {made.n_steps:,} steps, {made.tokens:,} tokens{about}"
    print(f"{config.run.dir}: {todo}")


def chosen_backend(config: Config) -> Backend:
    """The configured backend; `auto` is cuda where a GPU is found, otherwise cpu. Raises UserError for options it does not have."""
    return local_backend(config) if config.backend.get("name") == "auto" else instantiated(dict(config.backend), "backend")


def local_backend(config: Config, device: str = "auto") -> LocalBackend:
    """The configured backend if it is one of this process and of `device`, otherwise that of `device`; auto: cuda where a GPU is found."""
    name = config.backend.get("name")
    if device == "auto" and name not in LOCAL:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    local = config.backend if device in ("auto", name) else {"_target_": LOCAL[device]}
    return instantiated(dict(local), "backend")


def scoring_backend(config: Config) -> LocalBackend:
    """Where checkpoints are scored: eval.device."""
    try:
        return local_backend(config, config.eval.device)
    except UserError as error:
        raise UserError(f"eval.device={config.eval.device}: {error}") if config.eval.device != "auto" else error from None


def refuse_too_large(config: Config, backend: Backend) -> None:
    """Raise UserError where weights, gradients and optimizer alone are more than a CPU's memory; a GPU says so itself."""
    need = sum(size for name, size in memory_bytes(config.model, rows=1).items() if name in ("weights", "gradients", "optimizer"))
    have = machine.memory_bytes()
    here = "cpu" in (backend.name, config.backend.get("device"))
    require(
        not here or have is None or need < have,
        f"model={config.model.name} needs {need / 2**30:.0f} GiB for weights, gradients and optimizer",
        f"at most this machine's {(have or 0) / 2**30:.0f} GiB",
        "take a smaller model; task=plan says what each costs",
    )


def refuse_bad_benchmarks(config: Config) -> None:
    """Raise UserError now for what would stop the scoring later: a wrong option, and but for dry_run a missing file or package.

    Where nothing isolates programs, a training run goes on without scores, and says so once.
    """
    code = False
    for name, node in config.eval.benchmarks.items():
        benchmark = instantiated(node, f"eval.benchmarks.{name}")
        if hasattr(benchmark, "evaluate"):  # a task of lm-eval
            if not config.dry_run:
                benchmark.refuse_unknown()
            continue
        config.eval.protocol.asking(benchmark.kind, name)
        if not config.dry_run:
            code = True
            with suppress(BenchmarkAbsent):  # nobody's fault: said when it is its turn
                asked(benchmark, config.eval.protocol)
    if code:
        try:
            Pool(Limits(), workers=1, sandbox=config.sandbox).close()
        except UserError as error:
            if config.task != "train":
                raise
            print(f"benchmarks will not be scored: {error}", file=sys.stderr)


def instantiated(node: dict, key: str) -> Any:
    """Instantiate a `_target_` node; a target that is not there and options that it has not become a UserError that names `key`."""
    name = str(node.get("_target_"))
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={name} ({error}); expected package.module.Class; mend it, or install the package") from error
    if is_dataclass(target):  # its fields say which options there are, and of what type
        known = OmegaConf.structured(target)
        OmegaConf.set_readonly(known, False)  # a frozen one is read-only
        OmegaConf.merge({key: known}, {key: {name: value for name, value in node.items() if name != "_target_"}})
    try:
        return instantiate(node, _convert_="all")  # plain lists and dicts, which go into json and to other processes
    except InstantiationException as error:
        if isinstance(error.__cause__, TypeError):
            raise UserError(f"{key} has a wrong option ({error.__cause__}); expected those of {name}; mend {key}") from error
        raise (error.__cause__ or error) from None


def prepare_only(config: Config) -> None:
    """Prepare the data, or with dry_run say what would be prepared."""
    if config.dry_run:
        from stages.plan import show_data

        refuse_missing_corpus(config)
        show_data(config, readers_of(config.data))
        return
    print(f"prepared: {prepared_data(config).folder}")


def readers_of(data: DataConfig) -> list[Reader]:
    """The configured document readers."""
    return [instantiated(node, f"data.readers.{name}") for name, node in data.readers.items()]


def decontaminator_of(data: DataConfig) -> Decontaminator | None:
    """What finds the configured benchmarks' problems in documents; UserError where a benchmark cannot be had."""
    problems = []
    for name, node in data.decontaminate.against.items():
        if node is None:
            continue
        key = f"data.decontaminate.against.{name}"
        try:
            found = instantiated(node, key).problems()
        except (BenchmarkAbsent, UserError) as error:
            said = str(error).replace(f"eval.benchmarks.{name}", key)
            raise UserError(f"{said}, or leave it out with {key}=null") from error
        problems += [Problem(problem.task_id, problem.statement, problem.canonical) for problem in found]
    if not problems:
        return None
    return Decontaminator(problems, n=data.decontaminate.ngram)


def refuse_missing_corpus(config: Config) -> None:
    """Raise UserError where the documents or rows would be read from are no files; without reading them."""
    if config.data.format == "hdf5":
        listed(Path(str(config.data.root)))
    to_be_made = config.data.harvest is not None and not Path(config.data.harvest["out"]).exists()
    if not to_be_made and not Path(config.data.out).exists():
        for reader in readers_of(config.data):
            reader.files()
        if config.data.decontaminate.action != "ignore":
            decontaminator_of(config.data)


def prepared_data(config: Config) -> Prepared:
    """The prepared data of `config`: made where it is not there yet, opened and checked where it is."""
    data, folder = config.data, Path(config.data.out).parent
    if (Path(data.out) / "manifest.json").exists():
        return _prepared_data(config, data)
    from stages.record import only_process

    with only_process(folder, wait=True):  # the points of a sweep, and others, may come here at once
        try:
            return _prepared_data(config, data)
        finally:
            (folder / ".lock").unlink(missing_ok=True)  # who holds or awaits it still finds the data made; at worst it is made twice


def _prepared_data(config: Config, data: DataConfig) -> Prepared:
    if data.harvest is not None and not Path(data.harvest["out"]).exists():
        print(f"harvesting text and code from this Python installation into {data.harvest['out']}", file=sys.stderr)
        instantiated(data.harvest, "data.harvest")

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    tokenizer = None if data.tokenizer is None else Path(data.tokenizer)
    if data.format == "hdf5":
        assert data.root is not None and tokenizer is not None, "DataConfig has refused this"
        adopt(
            Path(data.root), Path(data.out), seq_len=config.scale.seq_len, tokenizer=tokenizer, vocab_size=data.vocab_size,
            holdout=data.holdout, valid_rows=data.valid_rows, label=data.label, progress=tell,
        )  # fmt: skip
        with_fim = [stage.name for stage in config.stages.values() if stage.fim.rate and any(e.fim for e in stage.mixture.values())]
        if with_fim:
            tell(f"rows of HDF5 files are taken as they are: fill-in-the-middle of stage {', '.join(with_fim)} is what the files hold")
    else:
        settings = Settings(
            config.scale.seq_len, data.vocab_size, data.holdout, data.valid_rows, packing=data.packing, fim_room=data.fim_room,
            dedup=data.dedup, contaminated=data.decontaminate.action, on_broken=data.on_broken,
        )  # fmt: skip
        prepare(
            readers_of(data), Path(data.out), settings, tokenizer=tokenizer, label=data.label, progress=tell,
            executor=instantiated(config.executor, "executor"),
            decontaminator=None if data.decontaminate.action == "ignore" else decontaminator_of(data),
        )  # fmt: skip
    return Prepared.open(data.out, verify=data.verify)


def chosen_checkpoint(config: Config) -> Path:
    """checkpoint=DIR, or the newest of the run's last stage that has one."""
    from crystal import checkpoint

    if config.checkpoint is not None:
        return Path(config.checkpoint)
    for stage in sorted(config.stages, reverse=True):
        last = checkpoint.latest(Path(config.run.dir) / f"stage{stage}" / "checkpoints")
        if last is not None:
            return last
    raise UserError(f"no checkpoint in {config.run.dir}; expected a trained stage; train first, or give checkpoint=DIR or run.dir=DIR")


def evaluate(config: Config) -> None:
    """Benchmark scores of a checkpoint."""
    from crystal import checkpoint
    from crystal.generate import Completer
    from stages.heldout import HELDOUT, prepared_of, write_heldout
    from stages.scoring import score_checkpoint

    folder = chosen_checkpoint(config)
    checkpoint.read_state(folder)
    refuse_bad_benchmarks(config)
    stage = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    out = stage / "evaluations" / folder.name  # beside the run's own scores, which a look at another checkpoint must not change
    names = ", ".join(config.eval.benchmarks) or "nothing (eval=none)"
    print(f"{'would score' if config.dry_run else 'scoring'} {folder} on {names} into {out}")
    if config.dry_run:
        return
    load = cache(partial(Completer.load, folder, device=scoring_backend(config).name))
    results = score_checkpoint(folder, config.eval, out=out, sandbox=config.sandbox, load=load)
    if config.eval.benchmarks:
        write_heldout(out / HELDOUT, load, folder=folder, prepared=prepared_of(config, folder), attention=config.attention)
    if results and all(scores["status"] == "absent" for scores in results.values()):
        raise UserError("; ".join(f"{name} was not scored: {scores['reason']}" for name, scores in results.items()))


def generate(config: Config) -> None:
    """Print the prompt's completion, or with a suffix what comes between."""
    require(config.prompt is not None, "task=generate without a prompt", "prompt=TEXT, prompt=@FILE or prompt=- (stdin)", "give one")
    assert config.prompt is not None
    from crystal import checkpoint
    from crystal.generate import Completer

    folder, draw = chosen_checkpoint(config), config.eval
    if config.dry_run:
        checkpoint.read_state(folder)
        print(f"would draw up to {draw.max_new_tokens} tokens from {folder} at temperature {draw.temperature}")
        return
    completer = Completer.load(folder, device=scoring_backend(config).name)
    if config.suffix is not None:
        (middle,) = completer.infill([(config.prompt, config.suffix)], draw.sampling, stops=[()], seeds=[draw.seed])
        print(config.prompt + middle + config.suffix)
    else:
        print(config.prompt + completer.complete([config.prompt], draw.sampling, stops=[()], seeds=[draw.seed])[0])


def plan(config: Config) -> None:
    from stages.plan import show_plan

    show_plan(config)


def replay(config: Config) -> None:
    from stages.replay import replay

    replay(config)


def doctor(config: Config) -> None:
    from crystal.doctor import show_doctor

    show_doctor(config.run.dir)
