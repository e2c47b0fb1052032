"""The command line's manners: digits and prompts that reach Hydra whole, a help page, errors of one line.

The surprise: Hydra reads `stage=2` as an integer and refuses it as a choice, so the digits are quoted before it sees them.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crystal.config import UserError, require

GROUPS = ("task", "stage", "model", "data", "backend", "executor", "eval", "eval/protocol", "scale", "parametrization", "sweep")
TEXTS = ("prompt", "suffix")
OPTIONS = ("-m", "--multirun", "--cfg", "--resolve", "--help", "-h")  # of Hydra's, those that are of use here
SHOWS = ("job", "hydra", "all")  # what --cfg can show
FIXED = ("sweep", "task", "stage", "eval")  # what a sweep= says for all of its points
SEE_HELP = "see python -m crystal --help"


def quoted(argv: list[str]) -> list[str]:
    """The arguments as Hydra must get them: digits of a choice quoted, `prompt=` and `suffix=` read (@FILE, -) and quoted.

    Raises UserError for what Hydra would answer with its own page or a traceback: an unknown option, a value without a key.
    """
    for before, argument in zip(["", *argv], argv, strict=False):
        option, _, shown = argument.partition("=")
        if before == "--cfg":
            require(argument in SHOWS, f"--cfg {argument}", f"one of {', '.join(SHOWS)}", "give --cfg job")
        elif argument.startswith("-"):
            known = option in OPTIONS and (not shown or option == "--cfg" and shown in SHOWS)
            require(known, argument, f"key=value, group=choice or one of {', '.join(OPTIONS)}", SEE_HELP)
        else:
            require(option.strip("+~ ") != "", argument or "an empty argument", "key=value or group=choice", SEE_HELP)
    both = any(argument.startswith("--cfg") for argument in argv) and {"-m", "--multirun"} & set(argv)
    require(not both, "--cfg with -m", "one configuration to show", "leave -m out")
    require(argv[-1:] != ["--cfg"], "--cfg", f"one of {', '.join(SHOWS)} behind it", "give --cfg job")
    several = [argument for argument in argv if argument.startswith("config=")]
    require(len(several) < 2, " ".join(several), "one config=FILE", "let one name the other in its defaults")
    return [word for argument in argv for word in (_opened(argument) if argument.startswith("config=") else [_quoted(argument)])]


def _opened(argument: str) -> list[str]:
    """Hydra's two options for `config=FILE`, a configuration that begins with Crystal's own and changes what it likes."""
    path = Path(argument.partition("=")[2])
    defaults = _defaults(path, [])
    ours = defaults[:1] == ["config"] and defaults[-1] == "_self_"
    got = f"{argument} with defaults: {defaults}"
    require(ours, got, "a file whose defaults begin with config and end with _self_", "write defaults: [config, _self_]")
    own = path.suffix != ".yaml" or path.stem in ("config", "schema")
    require(not own, argument, "a name in .yaml that is not one of Crystal's own", "rename the file")
    return [f"--config-dir={path.absolute().parent}", f"--config-name={path.stem}"]


def _defaults(path: Path, above: list[Path]) -> list[Any]:
    """The defaults of a configuration file; those that lie beside it are read too, because Hydra follows a circle for ever."""
    require(path not in above, f"{path} in its own defaults", "defaults that do not come back", f"take {path.stem} out of one of them")
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"config={path} ({error}); expected a YAML file; check the path, or mend the file") from error
    defaults = found.get("defaults") if isinstance(found, dict) else None
    names = defaults if isinstance(defaults, list) else []
    beside = [path.with_name(f"{name}.yaml") for name in names if isinstance(name, str) and name != "config"]
    for file in beside:
        if file.exists():
            _defaults(file, [*above, path])
    return names


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals and key in GROUPS:
        # Hydra takes only text for a choice, and reads these as something else.
        return f"{key}=" + re.sub(r"(?i)(?<![\w.'\"])(\d[\d.]*|null|true|false)(?![\w.'\"])", r"'\1'", value)
    if equals and key in TEXTS:
        return f"{key}={_literal(_read(key, value))}"
    return argument


def _read(key: str, value: str) -> str:
    try:
        if value == "-":
            return sys.stdin.read()
        return Path(value[1:]).read_bytes().decode("utf-8") if value.startswith("@") else value
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={value}: {error}; expected a text file; check the path") from error


def _literal(text: str) -> str:
    """A Hydra quoted string that means `text`: quotes and the backslashes before them escaped, no interpolation."""
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)\Z", lambda match: match[1] * 2, text) + "'"


def heads(d_model: int, head_dim: int) -> int:
    """`${heads:D,K}` in conf/: how many heads of head_dim dims make up d_model."""
    remedy = f"give one (in a sweep model.d_model={2 * head_dim},{4 * head_dim},...), or model.n_heads too"
    require(d_model % head_dim == 0, f"model.d_model={d_model}", f"a multiple of its heads' {head_dim} dims", remedy)
    return d_model // head_dim


def swiglu_width(d_model: int) -> int:
    """`${swiglu_width:D}` in conf/: the ffn width that gives a SwiGLU as many parameters as an ffn of 4 d_model without gate."""
    return 8 * d_model // 3


for resolver in (heads, swiglu_width):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def choices(group: str) -> dict[str, str]:
    """The choices of a configuration group, each with the first comment line of its file."""
    found = {}
    for file in sorted(files("conf").joinpath(group).iterdir(), key=lambda file: file.name):
        name, dot, ending = file.name.rpartition(".")
        if ending == "yaml" and name != "base":
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
        "  python -m crystal config=FILE.yaml         a configuration of your own, which begins with defaults: [config, _self_]",
        "  python -m crystal -m tokens=2e6,4e6        several runs: one for each value",
        "  python -m crystal -m sweep=lr              a muP sweep: learning rate x width x seed; task=transfer sweep=lr reads it",
        "",
    ]
    for group in GROUPS:
        found = choices(group)
        width = max(13, *map(len, found))
        lines += [f"{group}=", *(f"  {name:<{width}} {comment}" for name, comment in found.items())]
    lines += [
        "",
        "keys     any value of the configuration, e.g. tokens=5e6 run.dir=DIR run.seed=2 eval.limit=20 sandbox=seccomp stages.2.fim.rate=1",
        "         dry_run=true says what would be done and stops; --cfg job prints the whole configuration",
        "status   0 done; 2 something you can mend, said in one line on stderr",
    ]
    return "\n".join(lines)


class PointFailed(Exception):
    """Why a point failed, in a line that begins with its folder.

    It is returned, not raised: Hydra would put a line of its own before it. Every one that is made here, or that comes here from another
    process (unpickling makes it anew), is in `told`, in order and once.
    """

    told: dict[str, None] = {}

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.told[line] = None


def refuse_bad_launch(argv: list[str]) -> None:
    """Raise UserError, before anything is written, where no point of a -m command line could run."""
    if not {"-m", "--multirun"} & set(argv):
        return
    overrides = [override for override in _overrides(argv) if not isinstance(override.value(), Glob)]
    if "sweep" in {override.key_or_group for override in overrides}:
        several = [each for each in overrides if each.is_sweep_override() and each.key_or_group in FIXED]
        got = "".join(str(each.input_line) for each in several[:1]).replace("'", "")
        require(not several, f"-m sweep= and {got}", "one value", "give each a command of its own")
    options = dict(argument.split("=", 1) for argument in argv if argument.startswith("--config-"))
    own = options.get("--config-dir")
    with initialize_config_dir(own, version_base="1.3") if own else initialize_config_module("conf", version_base="1.3"):
        given = ["hydra.searchpath=[pkg://conf]"] * bool(own) + [_first(override) for override in overrides]
        first = compose(options.get("--config-name", "config"), given, return_hydra_config=True)
    require(first.run.dir.strip() != "", "run.dir is empty", "a folder", "give run.dir=DIR, or leave it out")
    refuse_bad_sweep(first, first.hydra.runtime.choices)
    there = "Slurm" not in first.hydra.launcher._target_ or shutil.which("srun") and shutil.which("sbatch")
    require(bool(there), "hydra/launcher=submitit_slurm without srun and sbatch", "Slurm", "start there, or give hydra/launcher=joblib")


def refuse_bad_sweep(composed: DictConfig, choices: Mapping[str, Any]) -> None:
    """Raise UserError where a point of a sweep= is not one stage from fresh weights, trained for its loss alone."""
    if composed.sweep is None:
        return
    name, stages = f"-m sweep={composed.sweep}", composed.stages
    require(composed.task == "train", f"{name} with task={composed.task}", "task=train", "leave task= out; task=transfer goes without -m")
    fresh = len(stages) == 1 and composed.init_from is None and all(stage.starts_from is None for stage in stages.values())
    got = f"init_from={composed.init_from}" if composed.init_from is not None else f"stage={choices.get('stage')}"
    require(fresh, f"{name} with {got}", "one stage from fresh weights, because points keep none", "leave stage= and init_from= out")
    got = f"{name} with eval={choices.get('eval')}"
    require(not composed.eval.benchmarks, got, "eval=none, because a point keeps no weights to score", "leave eval= out")


def swept_keys(argv: list[str]) -> set[str]:
    """The keys that have several values under -m."""
    return {override.key_or_group for override in _overrides(argv) if override.is_sweep_override()}


def _overrides(argv: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides([argument for argument in argv if "=" in argument and not argument.startswith("-")])


def _first(override: Override) -> str:
    """The override as the first point gets it."""
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


def one_line(error: HydraException | OmegaConfBaseException) -> str:
    """What Hydra or OmegaConf said, as `what was got; what was expected; what to do`, without search paths."""
    behind = list(_behind(error))
    if ours := [each for each in behind if isinstance(each, UserError)]:  # from a resolver
        return str(ours[0])
    cause = next((each for each in (error, *behind) if getattr(each, "full_key", None)), error)
    text, key, why = str(error), getattr(cause, "full_key", None) or "", str(cause).split("\n")[0]
    if launcher := re.search(r"Could not find 'hydra/launcher/(\w+)'", text):
        remedy = "pip install 'crystal-trainer[sweep]', or give hydra/launcher=basic"
        return f"hydra/launcher={launcher[1]} is not installed; expected its package; {remedy}"
    if missing := re.search(r"Could not find '([\w/]+)/(.*?)'", text):
        group, choice = missing.groups()
        return f"{group}={choice}; expected one of {', '.join(choices(group)) if group in GROUPS else 'its choices'}; pick one"
    if missing := re.search(r"You must specify '(\w+)'", text):
        known = list(choices(missing[1]))
        return f"no {missing[1]} was chosen; expected one of {', '.join(known)}; give {missing[1]}={' or '.join(known)}"
    if missing := re.search(r"In '(.*)': Could not load '(.*)'", text):
        return f"{missing[2]} in the defaults of {missing[1]}; expected a file beside it or one of Crystal's; mend the name"
    if unknown := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (?:is )?not in ", text):
        return _unknown_key(unknown[1] if "Could not" in text else key, key, getattr(cause, "parent_node", None))
    if several := re.search(r"Ambiguous value for argument '(.*)'\n", text) or re.search(r"Sweep parameters '(.*)' requires", text):
        given = several[1].replace("'", "")
        return f"{given}; expected one value; put -m before it to run each, or quote the value if the comma is part of it"
    if wrong := re.search(r"Error merging override (.*)", text, flags=re.DOTALL):
        return f"{wrong[1]}; expected {_expected(why)}; give {key} such a value"
    if missing := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        name = key if key.endswith(missing[1]) else missing[1]
        return f"no value for {name}; expected one; give {name}=VALUE"
    if parsed := re.search(r"Error parsing override '(.*)'\n(.*)", text):
        return f"{parsed[1]} ({parsed[2]}); expected key=value or group=choice, with quotes around what is neither; {SEE_HELP}"
    if key:
        return f"{key}: {why}; expected {_expected(why)}; mend {key}"
    return f"{re.sub('See https.*', '', text).strip()}; expected key=value or group=choice; {SEE_HELP}"


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The errors that an error was raised from."""
    while before := error.__cause__ or error.__context__:
        yield before
        error = before


def _unknown_key(given: str, key: str, parent: Any) -> str:
    known = [str(name) for name in parent if name not in ("hydra", "_target_")] if isinstance(parent, DictConfig) else []
    unnamed = re.fullmatch(r"backend\.\w+", key) and parent is not None and "_target_" not in parent
    remedy = "options go with a named backend: give backend=cpu, cuda or cerebras too" if unnamed else "mend the key"
    return f"unknown key {given}; expected one of {', '.join(known) or 'the keys of the configuration'}; {remedy}"


def _expected(why: str) -> str:
    """The type that OmegaConf names in its complaint, in plain words."""
    named = (
        ("Integer", "a whole number"), ("Float", "a number"), ("bool", "true or false"), ("to string", "text"),
        ("Optional", "a value"), ("list", "a list [a, b]"), ("deletion", "it to stay"),
    )  # fmt: skip
    return next((plain for word, plain in named if word in why), "a value that fits and can be worked out")
