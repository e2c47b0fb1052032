"""What a sweep has shown, as Markdown, a plot, and a configuration for the large model.

The surprise: where transfer failed there is no configuration. A value that is known not to carry over is not handed on.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

from crystal.mup.transfer import MAX_DRIFT, MAX_PRICE, Interval, Optimum, Transfer

PLOT = "transfer.svg"
VALUES = "transferred.yaml"


def files(outcomes: Sequence[Transfer], provenance: str) -> dict[str, str]:
    """Name -> text of the report, the plot, and what muP transfers, if it does."""
    made = {"report.md": markdown(outcomes, provenance), PLOT: plot(outcomes)}
    for transfer in outcomes:
        if transfer.parametrization == "mup" and not transfer.failures:
            made[VALUES] = configuration(transfer, provenance)
    return made


def verdict(made: Transfer) -> str:
    """One line: whether and from which width the optimum of `made` transfers, what that costs, how far it moves; or why not."""
    wider = [best for best in made.optima.values() if best.width >= made.source]
    moves = f"the optimum moves by {max((best.drift for best in wider), key=abs):+.2f} notches"
    if made.drifting:
        moves += f" ({MAX_DRIFT:g} or more lies in the interval of width {', '.join(str(best.width) for best in made.drifting)})"
    better, pairs = made.better
    also = f"{moves}; at equal {made.key} the wider is better in {better} of {pairs} pairs"
    if made.failures:
        return f"{made.parametrization}: {made.key} does not transfer: {'; '.join(made.failures)}; {also}"
    dearest = max(wider, key=lambda best: best.price)
    cost = f"it costs at most {percent(dearest.price)} of loss (95 %: {span(dearest.price_interval, percent)})"
    but = f"; but not from a narrower one: {made.not_from}" if made.not_from else ""
    widths = f"width {made.source} to {wider[-1].width}, {wider[-1].width / made.source:g} x"
    return f"{made.parametrization}: {made.key} transfers from {widths}: {cost}; {also}{but}"


def table(made: Transfer) -> str:
    """The optima of one parametrization, width by width, in Markdown."""
    costs = f"{made.optima[made.source].value:.4g} costs"
    head = ["width", f"optimal {made.key}", "95 %", "drift, notches", "95 %", "loss", costs, "95 %", ""]
    return _markdown_table([head, *map(_row, made.optima.values())])


def _row(best: Optimum) -> list[str]:
    edge = "" if best.interior else " (edge)"
    return [
        str(best.width), f"{best.value:.4g}{edge}", span(best.interval, "{:.4g}".format), f"{best.drift:+.2f}",
        span(best.drift_interval, "{:+.2f}".format), f"{best.loss:.4f}", percent(best.price), span(best.price_interval, percent),
        "measured" if best.measured else "",
    ]  # fmt: skip


def percent(share: float) -> str:
    if not math.isfinite(share):
        return "not known" if math.isnan(share) else "diverges"
    return f"{100 * share:.2f} %"


def span(interval: Interval, shown: Callable[[float], str]) -> str:
    """An interval, or a dash where there is none."""
    return "—" if any(map(math.isnan, interval)) else " to ".join(map(shown, interval))


def costs(made: Transfer) -> str:
    """What the optimum of each width costs each other, in Markdown: how narrow a model may be to tune on."""
    head = ["tuned at", *(f"at {width}" for width in made.prices)]
    return _markdown_table([head, *([str(source), *map(percent, prices.values())] for source, prices in made.prices.items())])


def _markdown_table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---:"] * len(rows[0]), *rows[1:]])


def markdown(outcomes: Sequence[Transfer], provenance: str) -> str:
    """The report."""
    key = outcomes[0].key
    parts = [f"# Transfer of {key} over width", provenance, f"![loss against {key}, a line a width]({PLOT})"]
    for made in outcomes:
        parts += [
            f"## {made.parametrization}",
            f"**{verdict(made)}.**",
            table(made),
            f"One notch is a factor of {made.notch:.3g}; {made.n_seeds} seeds. What the optimum of each width costs the others:",
            costs(made),
        ]
        if not all(best.measured for best in made.optima.values()):
            there = f"`{key}={made.optima[made.source].value:.4g}`"
            parts.append(f"To measure the cost, add {there} to the sweep's command, so that it is run at all widths, and come back here.")
    parts += [
        "## How to read it",
        "The optimum is the vertex of the parabola, in the logarithm, through the best value and its two neighbours, each the mean over "
        "the seeds; beside a value that diverged, it is the best value itself. The intervals hold at least 95 % of the resamples over "
        "seeds, the same for all widths. With three seeds that is too narrow: made-up sweeps had the truth inside in about 70 % of cases.",
        "A width transfers where all optima lie inside the grid and its own, this very value, costs every wider width at most "
        f"{100 * MAX_PRICE:g} % of that one's best loss. The narrowest width that does is taken; two must be wider. A cost is measured "
        "where that value was run, else read off a parabola through three grid points. "
        f"A drift of more than {MAX_DRIFT:g} notch is told, but does not decide: a flat optimum may wander.",
    ]
    return "\n\n".join(parts) + "\n"


def configuration(made: Transfer, provenance: str) -> str:
    """The transferred value as a file for `config=FILE`, with where it is from."""
    narrow, wide = made.optima[made.source], max(made.optima.values(), key=lambda best: best.width)
    *groups, name = made.key.split(".")
    found = f"{narrow.value:.4g}  # optimum at width {narrow.width}, 95 % {span(narrow.interval, '{:.4g}'.format)}"
    lines = [
        "# Made by Crystal (task=transfer). For the large model: python -m crystal config=THIS_FILE model=... scale=...",
        f"# {provenance}",
        f"# {verdict(made)}.",
        "defaults: [config, _self_]",
        *(f'{"  " * depth}"{group}":' for depth, group in enumerate(groups)),
        f"{'  ' * len(groups)}{name}: {found}; costs width {wide.width} {percent(wide.price)} of loss",
    ]
    return "\n".join(lines) + "\n"


def plot(outcomes: Sequence[Transfer]) -> str:
    """An SVG: loss against the swept value, a line a width, a panel a parametrization; what lies far above the best is cut off."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(outcomes), 4), layout="constrained")
    axes = figure.subplots(1, len(outcomes), sharey=True, squeeze=False)
    lowest = min(best.loss for made in outcomes for best in made.optima.values())
    widths = sorted({width for made in outcomes for width in made.optima})
    shades = {width: 0.15 + 0.85 * i / (len(widths) - 1) for i, width in enumerate(widths)}
    for panel, made in zip(axes[0], outcomes, strict=True):
        for width, best in made.optima.items():
            colour = matplotlib.colormaps["viridis_r"](shades[width])
            values, losses = zip(*sorted(made.losses[width].items()), strict=True)
            panel.plot(values, losses, color=colour, marker=".", label=f"width {width}")
            panel.plot([best.value], [best.loss], color=colour, marker="D", markersize=7, linestyle="none")
        panel.axvline(made.optima[made.source].value, color="grey", linestyle=":", linewidth=1)
        panel.set(xscale="log", title=made.parametrization, xlabel=made.key, ylim=(0.985 * lowest, 1.3 * lowest))
        ticks = sorted({value for losses in made.losses.values() for value in losses})
        panel.set_xticks(ticks, [f"{value:.2g}" for value in ticks], fontsize="small")
        panel.minorticks_off()
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize="small")
    axes[0, 0].set_ylabel("training loss, nats per token")
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "crystal"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
