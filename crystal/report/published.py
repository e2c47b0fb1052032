"""Published scores to read one's own against, and a check of their arithmetic.

The surprise: averages are computed here; where one is printed beside its parts and is not their mean, the page says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

ROUNDED = 0.0051  # what two decimals may be off by


class Published(NamedTuple):
    """A published model's pass@1 in percent, None where it was not reported; `average` as it is printed beside them."""

    name: str
    humaneval: float | None
    mbpp: float | None
    average: float | None = None


@dataclass(frozen=True)
class PublishedTable:
    """`name` stands above the rows; `source` says where they are from and how they were measured, in sentences."""

    name: str
    source: str
    rows: tuple[Published, ...]


def code_average(humaneval: float | None, mbpp: float | None) -> float | None:
    """The mean of both, in their unit, where both are known."""
    return None if humaneval is None or mbpp is None else (humaneval + mbpp) / 2


def average_remarks(table: PublishedTable) -> list[str]:
    """A sentence for each row whose printed average is not the mean of its parts."""
    said = []
    for row in table.rows:
        mean = code_average(row.humaneval, row.mbpp)
        if mean is not None and row.average is not None and abs(row.average - mean) > ROUNDED:
            what = "the sum, not the mean," if abs(row.average - 2 * mean) <= ROUNDED else "not the mean"
            parts = f"{row.humaneval:.2f} and {row.mbpp:.2f}"
            said.append(f"The average printed for {row.name}, {row.average:.2f}, is {what} of {parts}; the mean is {mean:.1f}.")
    return said
