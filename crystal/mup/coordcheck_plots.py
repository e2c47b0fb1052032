"""The coordinate check's picture: a panel for each kind and variant, sizes over width (or depth), both axes logarithmic."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from crystal.mup.coordcheck import KINDS, Record
from crystal.mup.slopes import Verdict, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, WRONG, AT_INIT = "#333333", "#d01010", "#8c8c8c"
BLUES = ("#9fc5e8", "#4a90c4", "#0b4a7a")  # of the changes, early to late
STYLE: dict = {"font.size": 7, "axes.linewidth": 0.5, "xtick.major.width": 0.5, "ytick.major.width": 0.5, "axes.edgecolor": INK}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}


def draw(records: Sequence[Record], verdicts: Sequence[Verdict], over: str) -> bytes:
    """The picture as PNG. The verdicts' variants stand beside each other; wrong slopes make a title red."""
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    found = curves(records, over)
    kinds_a_row = max(1, 4 // len(verdicts))
    n_rows, n_columns = -(-len(KINDS) // kinds_a_row), kinds_a_row * len(verdicts)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.75 * n_columns, 1.5 * n_rows + 0.3), layout="constrained")
        grid = figure.subplots(n_rows, n_columns, squeeze=False)
        for i, kind in enumerate(KINDS):
            row, column = divmod(i, kinds_a_row)
            panels = grid[row][column * len(verdicts) : (column + 1) * len(verdicts)]
            for axes, verdict in zip(panels, verdicts, strict=True):
                axes.sharey(panels[0])
                _panel(axes, {key[3]: seeds for key, seeds in found.items() if key[:3] == (verdict.variant, verdict.mode, kind)})
                _title(axes, verdict, kind)
        for axes in grid[-1]:
            axes.set_xlabel(over)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(64).save(small, format="png", optimize=True)  # a quarter of the bytes
    return small.getvalue()


def _panel(axes: Axes, steps: dict[int, dict[int, list[tuple[int, float]]]]) -> None:
    from matplotlib.ticker import LogLocator

    for number, step in enumerate(sorted(steps)):
        xs = [x for x, _ in next(iter(steps[step].values()))]
        sizes = np.array([[size for _, size in pairs] for pairs in steps[step].values()])
        colour = BLUES[min(number - 1, len(BLUES) - 1)] if step else AT_INIT
        label = f"change at step {step}" if step else "size at init"
        axes.plot(xs, sizes.mean(axis=0), color=colour, lw=1.2, ls="-" if step else "--", marker="o", ms=2, label=label)
        axes.fill_between(xs, sizes.min(axis=0), sizes.max(axis=0), color=colour, alpha=0.25, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(xs, [f"{x}" for x in xs])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def _title(axes: Axes, verdict: Verdict, kind: str) -> None:
    wrong = any(slope.outcome == "wrong" for slope in verdict.slopes if slope.kind == kind)
    axes.set_title(f"{kind}: {verdict.variant}", fontsize=7, color=WRONG if wrong else INK, loc="left")
