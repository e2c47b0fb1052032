"""Templates filled and written: a page that needs nothing else, and the same in Markdown with its plots and its numbers beside it.

The surprise: the page carries every plot twice, for wide and narrow screens, and a stylesheet picks; no script runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystal.config import UserError
from crystal.report import facts, figures, samples
from crystal.report.axes import standalone
from crystal.runlog import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """One plot, for the page's column and for a phone's."""

    wide: str
    narrow: str


def draw(plot: Callable[[int], str | None]) -> Figure | None:
    """`plot` at both widths; None where it has nothing to draw."""
    wide, narrow = plot(figures.WIDE), plot(figures.NARROW)
    return Figure(wide, narrow) if wide and narrow else None


def write_pages(
    folder: Path, environment: Environment, template: str, told: Mapping[str, Any], plots: Mapping[str, Figure | None], numbers: Any
) -> Path:
    """Fill `template`.html.j2 and .md.j2 with `told` and `plots`, and write both, the plots and `numbers` into `folder`.

    Returns the path of the page. Everything is filled before anything is written, each file whole.
    """
    from markupsafe import Markup  # a part of jinja2

    palette, css = ((HERE / name).read_text(encoding="utf-8") for name in ("palette.css", "page.css"))
    inline = {name: plot and Figure(Markup(plot.wide), Markup(plot.narrow)) for name, plot in plots.items()}
    styles = {"palette": Markup(palette), "css": Markup(css)}
    files = {f"{name}.svg": standalone(plot.wide, palette) for name, plot in plots.items() if plot}
    files["scores.json"] = json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
    files["report.md"] = environment.get_template(f"{template}.md.j2").render(told, figures=plots)
    files["index.html"] = environment.get_template(f"{template}.html.j2").render(told, figures=inline, **styles)
    for name, text in files.items():
        write_text(folder / name, text)
    return folder / "index.html"


def new_environment(filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """jinja2 with what all pages use and `filters`. Raises UserError where it is not installed."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError:
        raise UserError("jinja2 is not installed; the report needs it; pip install 'crystal-trainer[report]'") from None

    def breakable(name: str) -> Markup:
        """A long source name that may break where its parts meet."""
        return Markup("<wbr>").join(escape(piece) for piece in re.split(r"(?<=/)|(?<=[a-z]{4})(?=[A-Z])", name))

    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=lambda name: bool(name and ".html" in name)
    )
    environment.filters.update(
        breakable=breakable,
        shown=facts.shown,
        tone=figures.tone,
        thousands="{:,}".format,
        signed=lambda change: f"{change:+.3f}".replace("-", "\N{MINUS SIGN}"),
        excerpt=samples.excerpt,
        fenced=fenced,
        cell=lambda value: value.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " "),
        **filters,
    )
    return environment


def fenced(code: str) -> str:
    """A Markdown code block whose fence is longer than any in the code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}\n{code}\n{fence}"
