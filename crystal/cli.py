"""The command line's manners: digits and prompts that reach Hydra whole, a help page, errors of one line.

The surprise: Hydra reads `stage=2` as an integer and refuses it as a choice, so the digits are quoted before it sees them.
"""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from crystal.config import UserError

GROUPS = ("task", "stage", "model", "data", "backend", "eval", "scale")
TEXTS = ("prompt", "suffix")


def quoted(argv: list[str]) -> list[str]:
    """The arguments as Hydra must get them: `stage=` digits quoted, `prompt=` and `suffix=` read (@FILE, -) and quoted."""
    return [_quoted(argument) for argument in argv]


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals and key == "stage":
        return "stage=" + re.sub(r"(?<![\w.'\"])\d+(?![\w.'\"])", lambda match: f"'{match[0]}'", value)
    if equals and key in TEXTS:
        return f"{key}={_literal(_read(key, value))}"
    return argument


def _read(key: str, value: str) -> str:
    if value == "-":
        return sys.stdin.read()
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={value}: {error}; expected a text file; check the path") from error


def _literal(text: str) -> str:
    """A Hydra quoted string that means `text`: quotes and the backslashes before them escaped, no interpolation."""
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)$", lambda match: match[1] * 2, text) + "'"


def choices(group: str) -> dict[str, str]:
    """The choices of a configuration group, each with the first comment line of its file."""
    found = {}
    for file in sorted(files("conf").joinpath(group).iterdir(), key=lambda file: file.name):
        name, dot, ending = file.name.rpartition(".")
        if ending == "yaml" and name not in ("base", "unset"):
            text = file.read_text(encoding="utf-8")
            comments = re.findall(r"^(?:task: \w+ +)?# (?!@package)(.*)$", text, flags=re.MULTILINE)
            found[name] = comments[0] if comments else ""
    return found


def help_page() -> str:
    """What `python -m crystal --help` prints."""
    lines = [
        "Crystal: train a code language model the way CrystalCoder was trained.",
        "",
        "usage: python -m crystal [group=choice ...] [key=value ...]        (or: crystal ...)",
        "",
        "  python -m crystal                          three small stages on your own Python's text and code, scored, reported",
        "  python -m crystal stage=2 backend=cuda     stage 2, from stage 1's last checkpoint in the same run directory",
        "  python -m crystal task=plan model=7b       what CrystalCoder costs",
        "  python -m crystal -m scale.lr_factor=0.3,1 a sweep: one run for each value",
        "",
    ]
    for group in GROUPS:
        lines.append(f"{group}=")
        lines += [f"  {name:<13} {comment}" for name, comment in choices(group).items()]
    lines += [
        "",
        "keys     any value of the configuration, e.g. tokens=5e6 run.dir=DIR run.seed=2 eval.temperature=0 stages.2.fim.rate=0.5",
        "         dry_run=true says what would be done and stops; --cfg job prints the whole configuration",
        "status   0 done; 2 something you can mend, said in one line on stderr",
    ]
    return "\n".join(lines)


def one_line(error: HydraException | OmegaConfBaseException) -> str:
    """What Hydra or OmegaConf said, as `what was got; what was expected; what to do`, without search paths."""
    text = str(error.__cause__ or error) if "raised while composing" in str(error) else str(error)
    text = "\n".join(line for line in text.splitlines() if "object_type=" not in line and "reference_type=" not in line)
    key = re.search(r"full_key: (\S+)", text)
    if missing := re.search(r"Could not find '(\w+)/(.+?)'", text):
        group, choice = missing.groups()
        return f"{group}={choice}; expected one of {', '.join(choices(group)) if group in GROUPS else 'its choices'}; pick one"
    if missing := re.search(r"You must specify '(\w+)'", text):
        return f"no {missing[1]} was chosen; expected one of {', '.join(choices(missing[1]))}; give {missing[1]}=CHOICE"
    if unknown := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (?:is )?not in ", text):
        return f"unknown key {key[1] if key else unknown[1]}; expected a key of the configuration; python -m crystal --cfg job shows them all"
    if wrong := re.search(r"Value '(.*?)' (?:of type '\w+' )?could not be converted to (\w+)", text):
        return f"{key[1] if key else 'a value'}={wrong[1]}; expected {wrong[2]}; give such a value"
    return f"{' '.join(text.split())}; expected key=value or group=choice; see python -m crystal --help"
