"""`task=plan` and `dry_run=true`: what a model, a stage, a run would cost, printed without doing it."""

from __future__ import annotations

from pathlib import Path

from crystal.checkpoint import latest
from crystal.config import Config
from crystal.data.hdf5 import listed
from crystal.data.readers import Reader
from crystal.data.shards import Prepared
from crystal.engine import Backend
from crystal.machine import usable_cores
from crystal.model import cost
from crystal.runlog import clock
from stages.recipes import recipe

# Measured on real text and code in the formats of the published datasets (benchmarks/results/speed/prepare.md).
PREPARED_BYTES_PER_S = 5.0e6  # of compressed files, by one core
START_S = 15.0
DISK = 2.8  # bytes of rows and index, 16 bits an id, for one of compressed files


def show_plan(config: Config) -> None:
    """Print parameters, FLOPs, memory by part, tokens, steps and days for `config` on `config.devices` devices."""
    model, plan = config.model, config.plan
    parts = cost.parameters(model)
    flops = cost.train_flops_per_token(model)
    shape = f"d_model {model.d_model}, {model.n_layers} layers, {model.n_heads} heads, ffn {model.d_ffn}, vocabulary {model.vocab_size}"
    print(f"model {model.name}: {sum(parts.values()):,} parameters ({shape}, sequence {model.seq_len})")
    for name, count in parts.items():
        print(f"  {name:<12}{count:>16,}")
    print(f"FLOPs per token, forward and backward: {flops:,}")
    memory = cost.memory_bytes(model, rows=plan.rows_per_device)
    print(f"memory on one device, unsharded, {plan.rows_per_device} rows at once: {sum(memory.values()) / 2**30:,.2f} GiB")
    for name, size in memory.items():
        print(f"  {name:<12}{size / 2**30:>12,.2f} GiB")
    if config.devices > 1:
        state = sum(memory[name] for name in ("weights", "gradients", "optimizer"))
        each = (sum(memory.values()) - state + state / config.devices) / 2**30
        print(f"  on each of {config.devices} devices, weights, gradients and optimizer sharded: {each:,.2f} GiB")
    rate = plan.device_flops_per_s * plan.mfu * config.devices
    print(f"time on {config.devices} devices of {plan.device_flops_per_s:.3g} FLOP/s at {plan.mfu:.0%} utilisation:")
    total_tokens = total_s = 0.0
    for stage in config.stages.values():
        made = recipe(stage, config.scale)
        seconds = made.tokens * flops / rate
        total_tokens, total_s = total_tokens + made.tokens, total_s + seconds
        print(f"  stage {stage.name}: {made.tokens:>19,} tokens {made.n_steps:>9,} steps {seconds / 86400:>12,.4f} days ({clock(seconds)})")
    print(f"  total  : {int(total_tokens):>19,} tokens {'':>15} {total_s / 86400:>12,.4f} days ({clock(total_s)})")


def show_run(config: Config, backend: Backend, readers: list[Reader]) -> None:
    """`task=train dry_run=true`: print what would be trained, scored and written, and write nothing."""
    show_data(config, readers)
    n_parameters = sum(cost.parameters(config.model).values())
    per_token, rate = cost.train_flops_per_token(config.model), backend.flops_per_s()

    def about(flops: float) -> str:
        return f", about {clock(flops / rate)}" if rate else ""

    print(f"model {config.model.name}: {n_parameters:,} parameters; run {config.run.dir}")
    total_flops = 0.0
    for stage in config.stages.values():
        made, folder = recipe(stage, config.scale), Path(config.run.dir) / f"stage{stage.name}"
        last = latest(folder / "checkpoints")
        done = int(last.name.removeprefix("step-")) if last else 0
        total_flops += (flops := (made.n_steps - done) * config.scale.batch_rows * config.scale.seq_len * per_token)
        source = config.init_from or (f"stage {stage.starts_from}" if stage.starts_from else "fresh weights")
        begin = f"goes on from step {done:,}" if done else f"starts from {source}"
        state = "complete, would be skipped" if (folder / "summary.json").exists() else begin
        print(f"stage {stage.name}: {made.tokens:,} tokens, {made.n_steps:,} steps{about(flops)}; {state}")
    benchmarks = ", ".join(config.eval.benchmarks) or "no benchmarks"
    checkpoint_bytes = 12 * n_parameters  # float32 weights and AdamW's two moments
    disk = checkpoint_bytes * (config.run.keep_checkpoints + 1) * len(config.stages)
    print(f"after each stage: validation loss, {benchmarks}")
    if rate:
        print(f"training about {clock(total_flops / rate)} at {rate / 1e9:,.0f} GFLOP/s")
    print(f"checkpoints up to {disk / 2**30:.2f} GiB, {checkpoint_bytes / 2**30:.3f} GiB each")


def show_data(config: Config, readers: list[Reader]) -> None:
    """`task=prepare dry_run=true`: print where documents come from, what is prepared already, and the disk it takes."""
    data = config.data
    if (Path(data.out) / "manifest.json").exists():
        parts = Prepared.open(data.out, verify=False).train.values()
        print(f"data {data.name}: prepared in {data.out}, {sum(part['tokens'] for part in parts):,} train tokens")
        return
    if data.format == "hdf5":
        files = [file for folder in listed(Path(str(data.root))).values() for file in folder]
        print(f"data {data.name}: {sum(file.stat().st_size for file in files) / 2**20:,.0f} MiB in {len(files):,} files below {data.root}")
        print(f"  would be read through once, and stay there; into {data.out} goes what was counted")
        return
    width = 2 if data.vocab_size <= 1 << 16 else 4
    if data.harvest is not None and not Path(data.harvest["out"]).exists():
        print(f"data {data.name}: would be harvested from this Python installation into {data.harvest['out']}, under 40 MB")
        print(f"  and prepared into {data.out}, under 40 MB, in about half a minute")
        return
    corpora = [reader.identity() for reader in readers]
    sizes = [size for corpus in corpora for size in corpus["files"].values()]
    mib, cores = sum(sizes) / 2**20, usable_cores()
    print(f"data {data.name}: {mib:,.0f} MiB in {len(sizes):,} files of {', '.join(corpus['path'] for corpus in corpora)}")
    seconds = START_S + sum(sizes) / PREPARED_BYTES_PER_S / cores
    print(f"  would be prepared into {data.out}: about {mib * DISK * width / 2:,.0f} MiB, twice that meanwhile")
    print(f"  in about {clock(seconds)} on this machine's {cores} cores")
