"""AdamW's parameter groups: muP's learning-rate multiples and CrystalCoder's weight decay."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

from crystal.config import AdamWConfig
from crystal.mup.plan import Plan


def param_groups(parameters: Iterable[tuple[str, nn.Parameter]], plan: Plan, config: AdamWConfig) -> list[dict]:
    """One group for each (learning-rate multiple, weight decay, eps), every parameter in exactly one.

    Returns torch optimizer groups with the extra keys `lr_mult` and `names`. Decay is AdamW's decoupled one, multiplied by the group's
    learning rate and not by muP's width (`decoupled_wd` of mup's repository; the released 1.0.0 differs).
    """
    groups: dict[tuple[float, float, float], dict] = {}
    names = set()
    for name, parameter in parameters:
        names.add(name)
        key = plan[name].lr_mult, config.weight_decay if plan[name].decay else 0.0, config.eps * plan[name].eps_mult
        group = groups.setdefault(key, {"params": [], "names": [], "lr_mult": key[0], "weight_decay": key[1], "eps": key[2]})
        group["params"].append(parameter)
        group["names"].append(name)
    assert names == set(plan), f"parameters without a plan, or plans without a parameter: {names ^ set(plan)}"
    return list(groups.values())


def set_lr(groups: Iterable[dict], lr: float) -> None:
    """Give every group the schedule's rate times its own multiple."""
    for group in groups:
        group["lr"] = lr * group["lr_mult"]


def named_state(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by parameter name ({"step", "exp_avg", "exp_avg_sq"}), the form in which backends exchange it."""
    return {
        name: dict(optimizer.state[parameter])
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }
