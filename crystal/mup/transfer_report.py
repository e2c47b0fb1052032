"""What a sweep has shown, as Markdown, a plot, and a configuration for the large model.

The surprise: where transfer failed there is no configuration. A value that is known not to carry over is not handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crystal.mup.transfer import MAX_DRIFT_NOTCHES, MAX_PRICE, Optimum, Transfer
from crystal.runlog import write_text

PLOT = "transfer.svg"
VALUES = "transferred.yaml"


def verdict(made: Transfer) -> str:
    """One line: whether the optimum of `made` transfers, and why not."""
    if made.failures:
        return f"{made.parametrization}: {made.key} does not transfer: {'; '.join(made.failures)}"
    widths = f"widths {made.optima[0].width} to {made.optima[-1].width}"
    drift, price = max(abs(best.drift) for best in made.optima), max(best.price for best in made.optima)
    return f"{made.parametrization}: {made.key} transfers over {widths}: at most {drift:.2f} notches of drift, {100 * price:.2f} % of loss"


def table(made: Transfer) -> str:
    """The optima of one parametrization, width by width, in Markdown."""
    head = ["width", f"optimal {made.key}", "95 %", "drift, notches", "95 %", "loss", f"loss at {made.optima[0].value:.4g}"]
    rows = [head, ["---:"] * len(head), *(_row(best) for best in made.optima)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(best: Optimum) -> list[str]:
    edge = "" if best.interior else " (edge)"
    optimum, interval = f"{best.value:.4g}{edge}", "{:.4g} to {:.4g}".format(*best.interval)
    drift, moved = f"{best.drift:+.2f}", "{:+.2f} to {:+.2f}".format(*best.drift_interval)
    price = f"{100 * best.price:+.2f} %" + (" (measured)" if best.measured else "")
    return [str(best.width), optimum, interval, drift, moved, f"{best.loss:.4f}", price]


def markdown(outcomes: Sequence[Transfer], provenance: str) -> str:
    """The report."""
    key = outcomes[0].key
    parts = [f"# Transfer of {key} over width", provenance]
    for made in outcomes:
        better, pairs = made.better
        parts += [
            f"## {made.parametrization}",
            f"**{verdict(made)}.**",
            table(made),
            f"At equal {key} the wider of two neighbouring widths is better in {better} of {pairs} pairs. One notch is a factor of "
            f"{made.notch:.3g}; {made.n_seeds} seeds.",
        ]
    parts += [
        f"![loss against {key}, a line a width]({PLOT})",
        "The optimum is the vertex of the parabola, in the logarithm, through the best value and its two neighbours, each the mean over "
        "the seeds; the intervals are over resampled seeds, the same for all widths, and with few seeds they are coarse. Transfer holds "
        f"where every optimum lies inside the grid, moves by at most {MAX_DRIFT_NOTCHES:g} notch with its interval, and the narrowest "
        f"width's optimum costs every width at most {100 * MAX_PRICE:g} % of its own best loss. Measured is a price where that very value "
        "was run at all widths; else it is the higher of two parabolas through the grid points around it.",
    ]
    return "\n\n".join(parts) + "\n"


def configuration(made: Transfer, provenance: str) -> str:
    """The transferred value as a file for `config=FILE`, with where it is from."""
    narrow, wide = made.optima[0], made.optima[-1]
    group, _, name = made.key.rpartition(".")
    lines = [
        "# Made by Crystal (task=transfer). For the large model: python -m crystal config=THIS_FILE model=... scale=...",
        f"# {provenance}",
        f"# {verdict(made)}.",
        "defaults: [config, _self_]",
        f"{group}:",
        f"  {name}: {narrow.value:.4g}  # optimum at width {narrow.width}, 95 % {narrow.interval[0]:.4g} to {narrow.interval[1]:.4g}; "
        f"at width {wide.width} {100 * wide.price:+.2f} % of loss",
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, outcomes: Sequence[Transfer], provenance: str) -> None:
    """Write report.md, the plot, and what muP transfers, if it does, into `folder`."""
    plot(folder / PLOT, outcomes)
    write_text(folder / "report.md", markdown(outcomes, provenance))
    (folder / VALUES).unlink(missing_ok=True)
    for made in outcomes:
        if made.parametrization == "mup" and not made.failures:
            write_text(folder / VALUES, configuration(made, provenance))


def plot(path: Path, outcomes: Sequence[Transfer]) -> None:
    """Loss against the swept value, a line a width, a panel a parametrization; what lies far above the best is cut off."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(outcomes), figsize=(5.2 * len(outcomes), 4), sharey=True, squeeze=False, layout="constrained")
    lowest = min(best.loss for made in outcomes for best in made.optima)
    for panel, made in zip(axes[0], outcomes, strict=True):
        colours = pyplot.get_cmap("viridis_r")
        for i, best in enumerate(made.optima):
            colour = colours(0.15 + 0.85 * i / (len(made.optima) - 1))
            values, losses = zip(*sorted(made.losses[best.width].items()), strict=True)
            panel.plot(values, losses, color=colour, marker=".", label=f"width {best.width}")
            panel.plot([best.value], [best.loss], color=colour, marker="D", markersize=7, linestyle="none")
        panel.axvline(made.optima[0].value, color="grey", linestyle=":", linewidth=1)
        panel.set(xscale="log", title=made.parametrization, xlabel=made.key, ylim=(0.985 * lowest, 1.3 * lowest))
        ticks = sorted({value for losses in made.losses.values() for value in losses})
        panel.set_xticks(ticks, [f"{value:.2g}" for value in ticks], fontsize="small")
        panel.minorticks_off()
        panel.grid(alpha=0.25)
    axes[0, 0].set_ylabel("training loss, nats per token")
    axes[0, -1].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "crystal"}):
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
