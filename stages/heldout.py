"""Bits per byte of a checkpoint on code that it has not seen: it falls long before the first problem is solved.

Two figures: held-out Python of the prepared data, where those are there, and HumanEval's canonical solutions behind their prompts, which
need no data. The surprise: bits per byte compare across tokenizers, nats per token do not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.code.problems import HumanEval
from crystal.bits import bits_of_continuations, bits_of_rows
from crystal.checkpoint import fingerprint
from crystal.config import Config, UserError
from crystal.data.shards import Prepared
from crystal.generate import Completer
from crystal.runlog import read_json, write_json

PYTHON = "starcoder/python"  # HumanEval and MBPP are Python
HELDOUT = "heldout.json"  # among the scores, and of another form


def write_heldout(path: Path, load: Callable[[], Completer], *, folder: Path, prepared: Prepared | str, attention: str) -> None:
    """Measure the weights of the checkpoint in `folder`, tell, and write `path`, unless it is of the same ones on the same rows.

    load: its model, asked for only where something is to be measured. prepared: a string says why there is none. Raises UserError where
    the checkpoint is damaged.
    """
    rows = prepared if isinstance(prepared, str) else prepared.fingerprint()[:16]
    of = {"checkpoint": folder.name, "weights": fingerprint(folder), "rows": rows}
    record = read_json(path, {})
    if {key: record.get(key) for key in of} != of:
        completer = load()
        python = {"absent": prepared} if isinstance(prepared, str) else _of_python(completer, prepared, attention)
        record = of | {"python": python, "canonical": _of_humaneval(completer)}
        write_json(path, record)
    for name, key in (("held-out Python", "python"), ("HumanEval's canonical solutions", "canonical")):
        told = record[key]
        if "absent" in told:
            print(f"  {name}: bits per byte not measured: {told['absent']}", file=sys.stderr)
        else:
            print(f"  {name}: {told['bits_per_byte']:.3f} bits per byte")


def prepared_of(config: Config, folder: Path) -> Prepared | str:
    """The prepared data of the configuration for the checkpoint in `folder`, or why there are none."""
    if not (Path(config.data.out) / "manifest.json").exists():
        return f"no prepared data in {config.data.out}; give the run's data=, or prepare them"
    try:
        prepared = Prepared.open(config.data.out, verify=False)
    except UserError as error:
        return str(error)
    if (folder / "tokenizer.json").read_bytes() != prepared.tokenizer_path.read_bytes():
        return f"the data in {config.data.out} were prepared with another tokenizer than the checkpoint's"
    return prepared


def _of_python(completer: Completer, prepared: Prepared, attention: str) -> dict[str, Any]:
    if not prepared.valid.get(PYTHON, {}).get("rows"):
        return {"absent": f"{prepared.folder} holds out nothing of {PYTHON}"}
    if prepared.seq_len > completer.config.seq_len:
        return {"absent": f"rows of {prepared.seq_len} tokens are longer than the model's {completer.config.seq_len}"}
    return bits_of_rows(completer, prepared, PYTHON, attention=attention) | {"source": PYTHON}


def _of_humaneval(completer: Completer) -> dict[str, Any]:
    try:
        return bits_of_continuations(completer, [(one.prompt, one.canonical) for one in HumanEval().problems()]) | {"source": "humaneval"}
    except UserError as error:
        return {"absent": str(error)}
