"""The published rows are the paper's, and an average that is none is noticed, in any table."""

from __future__ import annotations

import pytest

from crystal.report.published import Published, PublishedTable, average_remarks
from stages.published import TABLE_5


def test_table_5_is_whole() -> None:
    printed = {row.name: (row.humaneval, row.mbpp) for row in TABLE_5.rows}
    assert printed == {
        "CrystalCoder 7B, after stage 3": (28.38, 36.38), "Mistral 7B": (29.12, 38.78), "CodeLlama 7B": (33.50, 41.40),
        "OpenLLaMA v2 7B": (15.32, 12.69), "LLaMA 2 7B": (13.05, 20.09), "LLaMA 7B": (10.61, 17.04), "Falcon 7B": (9.42, 13.39),
        "StarCoder 15B": (33.63, 43.28),
    }  # fmt: skip
    assert "2312.06550" in TABLE_5.source and "temperature 0.2 (HumanEval) and 0.1 (MBPP)" in TABLE_5.source


def test_the_one_wrong_average_of_table_5_is_named() -> None:
    (remark,) = average_remarks(TABLE_5)
    assert remark == "The average printed for OpenLLaMA v2 7B, 28.01, is the sum, not the mean, of 15.32 and 12.69; the mean is 14.0."


@pytest.mark.parametrize(
    ("average", "said"),
    [(15.0, ""), (15.005, ""), (None, ""), (30.0, "is the sum"), (15.02, "is not the mean"), (15.5, "is not the mean")],
)
def test_any_average_is_checked(average: float | None, said: str) -> None:
    remarks = average_remarks(PublishedTable("", "", (Published("a", 10.0, 20.0, average), Published("b", 10.0, None, 10.0))))
    assert bool(remarks) == bool(said) and said in "".join(remarks)
