"""`task=plan`: what a model, a stage and a number of devices would cost, without training. Prints; imports no torch."""

from __future__ import annotations

from crystal.config import Config
from crystal.model import cost
from crystal.runlog import clock
from stages.recipes import recipe


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
    rate = plan.device_flops_per_s * plan.mfu * config.devices
    print(f"time on {config.devices} devices of {plan.device_flops_per_s:.3g} FLOP/s at {plan.mfu:.0%} utilisation:")
    total_tokens = total_s = 0.0
    for stage in config.stages.values():
        made = recipe(stage, config.scale)
        seconds = made.tokens * flops / rate
        total_tokens, total_s = total_tokens + made.tokens, total_s + seconds
        print(f"  stage {stage.name}: {made.tokens:>19,} tokens {made.n_steps:>9,} steps {seconds / 86400:>12,.4f} days ({clock(seconds)})")
    print(f"  total  : {int(total_tokens):>19,} tokens {'':>15} {total_s / 86400:>12,.4f} days ({clock(total_s)})")
