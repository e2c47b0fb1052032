"""The tasks of the command line, where configuration, data, backend and curriculum meet.

The surprise: this is the only place below `__main__` that holds the whole configuration; everything further down gets what it needs.
"""

from __future__ import annotations

import sys
from typing import Any
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from crystal import checkpoint
from crystal.config import Config, UserError, require
from crystal.data.prepare import prepare
from crystal.data.shards import Prepared
from crystal.engine import Backend
from crystal.runlog import write_text


def train(config: Config, composed: DictConfig, command: list[str]) -> None:
    """Prepare, train every stage that is not complete, score each, write the report."""
    from stages.curriculum import Run, run_curriculum

    backend = chosen_backend(config)
    if config.dry_run:
        from stages.plan import show_run

        return show_run(config)
    prepared = prepare_data(config)
    write_text(Path(config.run.dir) / "config.yaml", OmegaConf.to_yaml(composed, resolve=True))
    run_curriculum(Run(config, backend, prepared, command))
    report(config)


def chosen_backend(config: Config) -> Backend:
    """The configured backend; `auto` is cuda where a GPU is found, otherwise cpu. Raises UserError for options it does not have."""
    node = dict(config.backend)
    if node.get("name") == "auto":
        import torch

        node = {"_target_": "backends.cuda.CudaBackend" if torch.cuda.is_available() else "backends.cpu.CpuBackend"}
    return _made(node, "backend")


def _made(node: dict, key: str) -> Any:
    """Instantiate a `_target_` node; what its class refuses becomes a UserError that names `key`."""
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError):
            raise UserError(f"{key} has a wrong option ({cause}); expected those of {node['_target_']}; mend {key}") from error
        raise


def prepare_data(config: Config) -> Prepared:
    """The prepared data of `config`: made where it is not there yet, opened and checked where it is."""
    data = config.data
    if config.dry_run:
        from stages.plan import show_data

        show_data(config)
        sys.exit()
    if data.harvest is not None and not Path(data.harvest["out"]).exists():
        print(f"harvesting text and code from this Python installation into {data.harvest['out']}", file=sys.stderr)
        _made(data.harvest, "data.harvest")
    prepare(
        [_made(node, f"data.readers.{name}") for name, node in data.readers.items()], Path(data.out), seq_len=config.scale.seq_len,
        tokenizer=None if data.tokenizer is None else Path(data.tokenizer), vocab_size=data.vocab_size, holdout=data.holdout,
        valid_rows=data.valid_rows, label=data.label, progress=lambda line: print(line, file=sys.stderr),
    )
    return Prepared.open(data.out, verify=data.verify)


def chosen_checkpoint(config: Config) -> Path:
    """checkpoint=DIR, or the newest of the run's last stage that has one."""
    if config.checkpoint is not None:
        return Path(config.checkpoint)
    for stage in sorted(config.stages, reverse=True):
        last = checkpoint.latest(Path(config.run.dir) / f"stage{stage}" / "checkpoints")
        if last is not None:
            return last
    raise UserError(f"no checkpoint in {config.run.dir}; expected a trained stage; train first, or give checkpoint=DIR or run.dir=DIR")


def evaluate(config: Config) -> None:
    """Validation loss and benchmark scores of a checkpoint; a run's own go into its stage's scores."""
    from stages.scoring import score_checkpoint

    folder = chosen_checkpoint(config)
    checkpoint.read_state(folder)
    print(f"scoring {folder}")
    score_checkpoint(folder, config.eval, out=folder.parent.parent / "scores")


def generate(config: Config) -> None:
    """Print the prompt's completion, or with a suffix what comes between."""
    require(config.prompt is not None, "task=generate without a prompt", "prompt=TEXT, prompt=@FILE or prompt=- (stdin)", "give one")
    from crystal.generate import Completer

    assert config.prompt is not None
    completer = Completer.load(chosen_checkpoint(config))
    draw = config.eval
    if config.suffix is not None:
        middle = completer.infill(
            config.prompt, config.suffix, seed=draw.seed, max_new_tokens=draw.max_new_tokens, temperature=draw.temperature, top_p=draw.top_p
        )
        print(config.prompt + middle + config.suffix)
    else:
        text = completer.complete(
            [config.prompt], stops=[()], seeds=[draw.seed], max_new_tokens=draw.max_new_tokens, temperature=draw.temperature,
            top_p=draw.top_p, batch_size=1,
        )[0]
        print(config.prompt + text)


def plan(config: Config) -> None:
    from stages.plan import show_plan

    show_plan(config)


def report(config: Config) -> None:
    """Write the run's report."""
    from crystal.report.write import write_report
    from stages.published import SCORES

    print(f"report: {write_report(Path(config.run.dir), published=SCORES)}")


def doctor(config: Config) -> None:
    from crystal.doctor import show_doctor

    show_doctor(config.run.dir)
