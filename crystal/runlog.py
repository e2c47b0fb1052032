"""The run directory's files: JSON written whole or not at all, `metrics.jsonl` as the record of truth, and the progress line.

The surprise: `metrics.jsonl` is cut back when a stage goes on from a checkpoint, so that after a kill it reads as if nothing had
happened. TensorBoard and W&B are copies of it that may fail without harm.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from crystal.config import UserError

DAMAGED = "delete it, or give another run.dir"
Sink = Callable[[dict[str, Any]], None]


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, default: Any) -> Any:
    """What a JSON file holds, or `default` where there is none. Raises UserError where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); expected JSON; {DAMAGED}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}; expected a JSON object; {DAMAGED}")
    return value


def flattened(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested JSON; the items of a list of objects are numbered, other lists are values."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            yield from flattened(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        records = [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} has a damaged line ({error}); expected JSON; mend or remove that line") from error
    try:
        return records + [json.loads(line) for line in lines[-1:]]
    except json.JSONDecodeError:
        return records


class Metrics:
    """Append-only `metrics.jsonl` of a run, for one stage at a time."""

    def __init__(self, path: Path, *, stage: str, step: int, sinks: list[Sink]) -> None:
        """Open for `stage` from `step` on: what the file says of this stage after that step is cut off."""
        self.stage, self.sinks = stage, sinks
        kept = [line for line in read_lines(path) if line["stage"] != stage or line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one record; keys that end in `_s` are timings."""
        record = {"kind": kind, "stage": self.stage, "step": step} | values
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for sink in list(self.sinks):
            try:
                sink(record)
            except Exception as error:  # a sink is somebody else's service: whatever it throws must not stop the run
                self.sinks.remove(sink)
                print(f"a metrics sink failed and is left out from now on: {error}", file=sys.stderr)

    def sync(self) -> None:
        """Force everything logged so far to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def open_sinks(names: list[str], run_dir: Path) -> list[Sink]:
    """Copies of the metrics for `names` of tensorboard, wandb; what is not installed is named on stderr and left out."""
    sinks = []
    for name in names:
        try:
            sinks.append({"tensorboard": _tensorboard, "wandb": _wandb}[name](run_dir))
        except Exception as error:  # not installed, no account, no network: the run goes on
            print(f"no {name} ({error}); metrics are in {run_dir / 'metrics.jsonl'} all the same", file=sys.stderr)
    return sinks


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    prefix = f"stage{record['stage']}/{record['kind']}"
    flat = {}
    for key, value in record.items():
        for name, number in value.items() if isinstance(value, dict) else [("", value)]:
            if key != "step" and isinstance(number, int | float):
                flat["/".join(filter(None, (prefix, key, name)))] = float(number)
    return flat


def _tensorboard(run_dir: Path) -> Sink:
    writer = importlib.import_module("tensorboard.summary").Writer(str(run_dir / "tensorboard"))

    def sink(record: dict[str, Any]) -> None:
        for tag, value in _scalars(record).items():
            writer.add_scalar(tag, value, record["step"])
        writer.flush()  # its thread is not waited for at the end of the process

    return sink


def _wandb(run_dir: Path) -> Sink:
    run = importlib.import_module("wandb").init(project="crystal", name=run_dir.name, dir=str(run_dir), resume="allow")
    return lambda record: run.log(_scalars(record))


class Line:
    """A live line on stderr: rewritten in place on a terminal, one line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.t0 = self.printed = time.monotonic()
        self.live, self.line_open = sys.stderr.isatty(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End a live line, so that what is said next has its own."""
        if self.line_open:
            print(file=sys.stderr, flush=True)

    def tell(self, text: Callable[[], str], *, last: bool = False) -> None:
        """Say `text` if it is time to; `last`: in any case, and for good."""
        now = time.monotonic()
        if not (self.live or last or now - self.printed > 10):
            return
        self.printed, self.line_open = now, self.live and not last
        print(f"\r{text()}\x1b[K" if self.live else text(), end="\n" if last or not self.live else "", file=sys.stderr, flush=True)


class Progress(Line):
    """That of a stage's training."""

    def __init__(self, *, stage: str, n_steps: int, step: int, tokens_per_step: int) -> None:
        super().__init__()
        self.stage, self.n_steps, self.first, self.tokens_per_step = stage, n_steps, step, tokens_per_step

    def rate(self, step: int) -> float:
        """Tokens per second since this process took up the stage."""
        return (step - self.first) * self.tokens_per_step / max(time.monotonic() - self.t0, 1e-9)

    def show(self, step: int, loss: float) -> None:
        def text() -> str:
            rate = self.rate(step)
            eta_s = (self.n_steps - step) * self.tokens_per_step / max(rate, 1e-9)
            return f"stage {self.stage}  step {step:,}/{self.n_steps:,}  loss {loss:.3f}  {rate:,.0f} tokens/s  ETA {clock(eta_s)}"

        self.tell(text, last=step == self.n_steps)


class Count(Line):
    """That of work in `total` parts."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__()
        self.what, self.total, self.done = what, total, 0

    def add(self) -> None:
        """One more is done."""
        self.done += 1

        def text() -> str:
            eta_s = (self.total - self.done) * (time.monotonic() - self.t0) / self.done
            return f"  {self.what} {self.done:,}/{self.total:,}  ETA {clock(eta_s)}"

        if self.total > 1:
            self.tell(text)


def clock(seconds: float) -> str:
    """90061 -> '1d 01:01:01'."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h:02d}:{m:02d}:{s:02d}" if days else f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
