"""`task=import source=params.yaml` and `task=export format=params`.

The surprise: an imported file is a whole configuration that begins with Crystal's own (`python -m crystal config=FILE`), so whatever
the params.yaml leaves open can still be said on the command line.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crystal.cli import one_line
from crystal.config import Config, UserError, require
from crystal.runlog import flattened, write_text
from stages.out import new_out
from stages.params_yaml import cluster
from stages.params_yaml.names import RENAMED, Params
from stages.params_yaml.read import read
from stages.params_yaml.write import nested, written
from stages.recipes import recipe
from stages.tasks import instantiated

# Whence the values that are more than another name.
COMPUTED = {
    "rotary_fraction": "model.rotary_dim in dims of a head",
    "base_width": "model.hidden_size x optimizer.adjust_learning_rate.decoder_kernel",
    "output_alpha": "model.output_logits_scale x width multiplier",
    "parametrization": "model.scale_qk_dot_by_d",
}


def import_params(config: Config, source: Path) -> None:
    """Write `source` as a configuration to config.out, and print the keys that Crystal does not understand."""
    out = new_out(config, "file")
    named = out.suffix == ".yaml" and out.stem != "config"  # what config=FILE takes
    require(named, f"out={out}", "a configuration of its own name in .yaml", "give out=NAME.yaml")
    params, unknown = read(source, config)
    made = recipe(params.stage, params.scale)
    print(f"{source}: stage {made.stage.name}, {made.n_steps:,} steps, {made.tokens:,} tokens, model {params.model.name}")
    print(f"{len(unknown)} keys that Crystal does not understand:" if unknown else "Crystal understands every key")
    print("".join(f"  {key}\n" for key in unknown), end="")
    params = replace(params, backend=_for_backend(config, source, params.backend))
    if config.dry_run:
        print(f"would write {out}")
        return
    write_text(out, as_config(params, source.name))
    print(f"{out}: to train by it, python -m crystal config={out}")


def _for_backend(config: Config, source: Path, options: dict[str, Any]) -> dict[str, Any]:
    """`options` of backend=cerebras, checked, where that is configured; elsewhere none of them, and a line that says so."""
    if config.backend.get("name") != "cerebras":
        if options:
            print(f"{len(options)} options of a Cerebras cluster are left out; backend=cerebras has them written, too")
        return {}
    node: Any = OmegaConf.to_container(OmegaConf.merge(config.backend, nested(options)))
    try:
        instantiated(node, "backend")
    except (UserError, OmegaConfBaseException) as error:
        said = one_line(error) if isinstance(error, OmegaConfBaseException) else error
        raise UserError(f"{source}: {said}") from error
    return options


def as_config(params: Params, source: str) -> str:
    """A YAML file for `config=FILE`: every value that the params.yaml decides, and from which of its keys it is."""
    like, backend = params.stage.name, OmegaConf.to_yaml({"backend": nested(params.backend)})
    lines = [
        f"# Made by Crystal (task=import) from {source}; each comment names the key there. python -m crystal config=THIS_FILE",
        "# These values stand above those of model= and scale=; key=value on the command line stands above these.",
        f"defaults: [config, override model: 7b, override stage: null, {'override backend: cerebras, ' * bool(params.backend)}_self_]",
        *_section("run", {"seed": params.seed}, RENAMED["run"]),
        *_section("scale", asdict(params.scale), RENAMED["scale"]),
        *_section("model", asdict(params.model), {"name": "", **RENAMED["model"], **COMPUTED}),
        *_section("optim", asdict(params.optim), RENAMED["optim"]),
        "# From runconfig.max_steps, optimizer.learning_rate and train_input.mixture. What the file does not say is as configured for",
        f"# stage {like}: starts_from, optimizer, and fim but for a rate that a data_dir names.",
        OmegaConf.to_yaml({"stages": {like: asdict(params.stage)}}),
        *(["# From runconfig, for backend=cerebras alone.", backend] if params.backend else []),
    ]
    return "\n".join(lines)


def _section(name: str, values: dict[str, Any], origins: dict[str, str]) -> list[str]:
    """`values` that have an origin, each on a line with it."""
    lines = [(OmegaConf.to_yaml({key: values[key]}).strip(), origin) for key, origin in origins.items()]
    return [f"{name}:", *(f"  {line}  # {origin}" if origin else f"  {line}" for line, origin in lines)]


def export_params(config: Config) -> None:
    """Write the params.yaml of the one configured stage to config.out."""
    out = new_out(config, "file")
    names = ", ".join(config.stages)
    require(len(config.stages) == 1, f"format=params of the stages {names}", "one stage a params.yaml", "name it with stage=1, 2 or 3")
    (stage,) = config.stages.values()
    options = _options(config)
    params = Params(config.model, config.scale, config.optim, stage, config.run.seed, folders={}, backend=options)
    head = f"# Made by Crystal (task=export) for ModelZoo 1.x: stage {stage.name} of model {config.model.name}; what Crystal knows of it.\n"
    cluster_missing = "" if options else ", the cluster (backend=cerebras)"
    head += f"# To add: where the data is (data_dir), eval_input{cluster_missing}.\n"
    head += "".join(f"# No word in 1.x for backend.{key}: {value}\n" for key, value in cluster.unwritten(options).items())
    text = head + OmegaConf.to_yaml(written(params))
    if config.dry_run:
        print(f"would write {out}")
        return
    write_text(out, text)
    print(f"params.yaml of stage {stage.name}: {out}")


def _options(config: Config) -> dict[str, Any]:
    """Those of backend=cerebras by their dotted names, with the number of systems that a batch is shared by; of others none."""
    if config.backend.get("name") != "cerebras":
        return {}
    backend = instantiated(config.backend, "backend")
    return dict(flattened(config.backend)) | {"cluster.num_csx": backend.cluster.systems(config.scale.batch_rows)}
