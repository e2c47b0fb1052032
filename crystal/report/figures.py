"""The three plots: training over tokens, validation source by source, scores with their intervals.

Each returns one SVG of the given width, or None where there is nothing to draw yet. Colour means the stage, or the checkpoint.
The surprise: loss axes are logarithmic, because a muP model with tied, scaled-up embeddings starts near 28 and what
matters happens between 2 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crystal.report.axes import XY, Panel, linear_ticks, log_ticks, rule, si, svg, text, thin
from crystal.report.metrics import TrainPoint
from crystal.report.read import Run, Stage, headline_first
from crystal.report.scorefile import benchmark_name
from crystal.report.scores import Subject

WIDE, NARROW = 880, 360  # CSS pixels: the page's column, and a phone's
LETTER = 7  # CSS pixels: about a letter's width
TONES = 6  # colours in palette.css
SMOOTHING = 0.04  # the share of a stage's logged steps that the smooth line averages over


def tone(stage: str) -> str:
    """The CSS class of a stage's colour, or of the nth thing's; a stage keeps it in every run."""
    return f"tone-{(int(stage) - 1) % TONES + 1 if stage.isdecimal() else sum(stage.encode()) % TONES + 1}"


def drawable(value: float) -> bool:
    """Whether a logarithmic axis has a place for it: a diverged run's NaN has none."""
    return math.isfinite(value) and value > 0


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean over `window` values around each; at the start fewer, evenly on both sides; at the end the last `window`."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    reach = [min(window // 2, i) for i in range(len(values))]
    spans = [(i - r, i + r + 1) if i + r < len(values) else (max(0, len(values) - window), len(values)) for i, r in enumerate(reach)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def smoothing_window(stage: Stage) -> int:
    """Logged steps under the smooth line, odd so that it is centred."""
    return int(SMOOTHING * len(stage.train)) // 2 * 2 + 1


def training(run: Run, width: int) -> str | None:
    """Loss, learning rate and throughput over tokens, one above the other on one token axis."""
    losses = [point.loss for stage in run.stages for point in stage.train if drawable(point.loss)]
    if not losses:
        return None
    low, high = min(losses) * 0.96, max(losses) * 1.04
    across = (0.0, float(run.tokens) or 1.0)
    panel = Panel(44, 48, width - 56, 252, across, (low, high), log=True)
    title = text(0, 12, "training loss, nats per token", "label")
    body = [title, *_bands(run, panel, 540), *panel.grid(log_ticks(low, high))]
    for stage in run.stages:
        points = [p for p in stage.train if drawable(p.loss)]
        at = [float(stage.start + p.tokens) for p in points]
        raw = list(zip(at, (p.loss for p in points), strict=True))
        mean = list(zip(at, smooth([p.loss for p in points], smoothing_window(stage)), strict=True))
        body += [panel.line(thin(raw, width), f"raw {tone(stage.name)}")]
        body += [panel.line(thin(mean, width // 2), f"line {tone(stage.name)}")]
    rates = [(s, [(p, p.lr) for p in s.train if p.lr is not None]) for s in run.stages]
    speeds = [(s, [(p, p.tokens_per_s) for p in s.train if p.tokens_per_s is not None]) for s in run.stages]
    body += _strip(Panel(44, 344, width - 56, 76, across, (0, 1)), rates, "learning rate", "line", width)
    bottom = Panel(44, 464, width - 56, 76, across, (0, 1))
    body += _strip(bottom, speeds, "throughput, tokens per second", "fine", width)
    body += bottom.x_axis(linear_ticks(*across, 8 if width > 500 else 4), "tokens, over all stages")
    return svg(width, 584, "Training loss, learning rate and throughput over tokens", body)


def _bands(run: Run, panel: Panel, bottom: float) -> list[str]:
    """A line where each stage after the first begins, and the name of each at the top of its stretch."""
    marks = []
    for stage in run.stages:
        left, right = panel.px(stage.start), panel.px(stage.end)
        if right > left:
            marks += [rule(left, panel.top - 16, left, bottom, "boundary")] if stage.start else []
            name = f"stage {stage.name}" if right - left > 52 else stage.name
            marks.append(text((left + right) / 2, panel.top - 8, name, f"stage {tone(stage.name)}", "middle"))
    return marks


def _strip(frame: Panel, curves: Sequence[tuple[Stage, Sequence[tuple[TrainPoint, float]]]], label: str, css: str, width: int) -> list[str]:
    """A low panel from zero to the highest finite value, one line a stage."""
    lines: list[tuple[Stage, list[XY]]] = [
        (stage, [(float(stage.start + p.tokens), value) for p, value in curve if math.isfinite(value)]) for stage, curve in curves
    ]
    high = max((y for _, line in lines for _, y in line), default=0.0)
    if high <= 0:
        return [text(0, frame.top - 12, f"{label}: not recorded", "label")]
    panel = Panel(frame.left, frame.top, frame.width, frame.height, frame.x, (0, high * 1.05))
    drawn = [panel.line(thin(line, width), f"{css} {tone(stage.name)}") for stage, line in lines]
    return [text(0, frame.top - 12, label, "label"), *panel.grid(linear_ticks(0, high * 1.05, 4)), *drawn]


def validation(run: Run, width: int) -> str | None:
    """A small panel for every held-out source, all on the same scales: bits per byte at each evaluation."""
    curves: dict[str, list[tuple[str, XY]]] = {}
    for stage in run.stages:
        for point in stage.valid:
            for source, value in point.bits_per_byte.items():
                if drawable(value):
                    curves.setdefault(source, []).append((stage.name, (float(stage.start + point.tokens), value)))
    if not curves:
        return None
    values = [y for curve in curves.values() for _, (_, y) in curve]
    low, high = min(values) * 0.94, max(values) * 1.06
    columns = 4 if width > 500 else 2
    cell, deep = (width - 34) / columns, 132
    rows = math.ceil(len(curves) / columns)
    body = [text(0, 12, "bits per byte of held-out text, all on the same scales", "label")]
    for i, (source, curve) in enumerate(sorted(curves.items(), key=lambda item: headline_first(item[0]))):
        row, column = divmod(i, columns)
        across = (0.0, float(run.tokens) or 1.0)
        panel = Panel(34 + column * cell, 52 + row * deep, cell - 46, deep - 54, across, (low, high), log=True)
        body += _small(run, panel, source, curve, with_ticks=column == 0)
    return svg(width, 34 + rows * deep, "Validation bits per byte of every source", body)


def _small(run: Run, panel: Panel, source: str, curve: Sequence[tuple[str, XY]], *, with_ticks: bool) -> list[str]:
    marks = [text(panel.left, panel.top - 9, source, "source" if panel.width > 140 else "source tight")]
    for tick in log_ticks(*panel.y):
        marks.append(rule(panel.left, panel.py(tick), panel.right, panel.py(tick), "grid"))
        if with_ticks:
            marks.append(text(panel.left - 7, panel.py(tick) + 4, f"{tick:g}", "tick", "end"))
    for stage in run.stages[1:]:
        marks.append(rule(panel.px(stage.start), panel.top, panel.px(stage.start), panel.bottom, "boundary"))
    marks.append(rule(panel.left, panel.bottom, panel.right, panel.bottom, "axis"))
    marks.append(text(panel.left, panel.bottom + 14, "0", "tick"))
    marks.append(text(panel.right, panel.bottom + 14, f"{si(run.tokens)} tokens", "tick", "end"))
    marks.append(panel.line([point for _, point in curve], "line quiet"))
    for stage_name, point in curve:
        hint = f"stage {stage_name}, {si(point[0])} tokens: {point[1]:.3f} bits per byte"
        marks.append(panel.dot(point, 2.6, f"dot {tone(stage_name)}", hint))
    stage_name, last = curve[-1]
    marks.append(text(panel.right + 6, panel.py(last[1]) + 4, f"{last[1]:.2f}", f"value {tone(stage_name)}"))
    return marks


def scores(subjects: Sequence[Subject], width: int) -> str | None:
    """pass@1 of each subject as a dot on its 95 % interval, in percent, benchmark by benchmark."""
    rows = [
        (benchmark_name(name), subject, 100 * score.rate, 100 * score.ci95[0], 100 * score.ci95[1])
        for name in sorted({name for subject in subjects for name in subject.scores})
        for subject in subjects
        for score in [subject.scored(name)]
        if score and score.is_code and score.rate is not None and score.ci95
    ]
    if not rows:
        return None
    high = min(100.0, max(high for *_, high in rows) * 1.15 or 1.0)
    panel = Panel(8, 8, width - 20, 44 * len(rows), (0, high), (0, float(len(rows))))
    ticks = linear_ticks(0, high, 8 if width > 500 else 4)
    body = [rule(panel.px(tick), panel.top, panel.px(tick), panel.bottom, "grid") for tick in ticks]
    for i, (benchmark, subject, value, lower, upper) in enumerate(rows):
        y, css, said = panel.top + 44 * i + 30, subject.tone, f"{value:.1f} %  [{lower:.1f}, {upper:.1f}]"
        room = max(8, int(panel.width / LETTER) - len(f"{benchmark}, {said}"))
        name = subject.name if len(subject.name) <= room else f"…{subject.name[-room:]}"
        body += [
            text(panel.left, y - 12, f"{benchmark}, {name}", f"stage {css}"),
            text(panel.right, y - 12, said, "value", "end"),
            rule(panel.px(lower), y, panel.px(upper), y, f"interval {css}"),
            rule(panel.px(lower), y - 4, panel.px(lower), y + 4, f"cap {css}"),
            rule(panel.px(upper), y - 4, panel.px(upper), y + 4, f"cap {css}"),
            f'<circle cx="{panel.px(value):.1f}" cy="{y:.1f}" r="4.5" class="dot {css}"/>',
        ]
    body += panel.x_axis(ticks, "pass@1, percent of problems")
    return svg(width, panel.bottom + 42, "pass@1 with 95 % intervals", body)
