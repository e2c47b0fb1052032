"""The cluster's part of a params.yaml: the options of backend=cerebras in the words of ModelZoo 1.9's `runconfig`.

The surprise: there null stands for whatever the release does by itself, and so do 0, false and an empty list here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from crystal.runlog import flattened

LIMITED = ("compile_crd", "execute_crd", "wrk", "act", "cmd", "wgt")
LEVEL, MICRO_BATCH = "csx.optimization_level", "csx.micro_batch_size"
# Theirs and ours. Source: what run_cstorch_flow.py of release 1.9 gives to its CSConfig.
RENAMED = {
    "runconfig.compile_dir": "compile_dir",
    "runconfig.num_csx": "cluster.num_csx",
    "runconfig.num_workers_per_csx": "cluster.num_workers_per_csx",
    "runconfig.num_wgt_servers": "cluster.max_wgt_servers",
    "runconfig.num_act_servers": "cluster.max_act_per_csx",
    "runconfig.mgmt_address": "cluster.mgmt_address",
    "runconfig.mgmt_namespace": "cluster.mgmt_namespace",
    "runconfig.credentials_path": "cluster.credentials_path",
    "runconfig.job_labels": "cluster.job_labels",
    "runconfig.job_time_sec": "cluster.job_time_sec",
    "runconfig.mount_dirs": "cluster.mount_dirs",
    "runconfig.python_paths": "cluster.python_paths",
    "runconfig.disable_version_check": "cluster.disable_version_check",
    "runconfig.precision_opt_level": LEVEL,
    "runconfig.transfer_processes": "csx.transfer_processes",
    **{f"runconfig.{process}_memory_gi": f"csx.memory_gi.{process}" for process in LIMITED},
}
ONLY = {"compile": "runconfig.compile_only", "validate": "runconfig.validate_only"}
DEVICE, TILED, TILE = "runconfig.target_device", "runconfig.use_cs_grad_accum", "train_input.micro_batch_size"
KEYS = {*RENAMED, *ONLY.values(), DEVICE, TILED, TILE}
DEFAULTS = dict(flattened(OmegaConf.to_container(OmegaConf.create((files("conf") / "backend" / "cerebras.yaml").read_text()))))


def written(options: dict[str, Any]) -> dict[str, Any]:
    """KEYS and their values, for some options of backend=cerebras by their dotted names; the others are as by default."""
    options = DEFAULTS | options
    micro_batch = options.get(MICRO_BATCH, "auto")
    flat = {theirs: options[ours] if ours == LEVEL else options[ours] or None for theirs, ours in RENAMED.items()}
    flat |= {theirs: options["mode"] == mode or None for mode, theirs in ONLY.items()}
    flat |= {DEVICE: options["device"].upper(), TILED: micro_batch is not None}
    return flat if micro_batch in ("auto", None) else flat | {TILE: micro_batch}


def read(flat: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The options that the keys of a params.yaml say, and which keys these are: those that `written` makes again."""
    options = {ours: DEFAULTS[ours] if flat[theirs] is None else flat[theirs] for theirs, ours in RENAMED.items() if theirs in flat}
    if options.get(LEVEL) == -1:  # as in CrystalCoder's phases 2 and 3; the SDK has no such level any more
        del options[LEVEL]
    if flat.get(DEVICE) in ("CSX", "CPU"):
        options["device"] = flat[DEVICE].lower()
    if TILED in flat:
        options[MICRO_BATCH] = (flat.get(TILE) or "auto") if flat[TILED] else None
    for mode, theirs in ONLY.items():
        if flat.get(theirs):
            options["mode"] = mode
    again = written(options)
    return options, {key for key in KEYS & flat.keys() if (flat[key] or None) == (again.get(key) or None)}


def unwritten(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not as by default and for which releases 1.x have no word."""
    said = {*RENAMED.values(), MICRO_BATCH}
    others = {key: value for key, value in options.items() if key.startswith(("cluster.", "csx.")) and key not in said}
    return {key: value for key, value in others.items() if key not in DEFAULTS or DEFAULTS[key] != value}
