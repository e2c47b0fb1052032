"""attention=document, from the command line to the losses of training and validation."""

from __future__ import annotations

import pytest

from crystal.runlog import read_lines


def test_both_losses_are_those_within_documents(crystal, tiny_overrides, tmp_path):
    """At step 1, which is before any update: with the same weights and rows, of which some hold several documents."""
    first = {}
    for kind in ("full", "document"):
        command = [
            *tiny_overrides,
            "stage=1",
            f"attention={kind}",
            "scale.log_every=1",
            "scale.valid_every=1",
            f"run.dir={tmp_path / kind}",
        ]
        assert crystal(*command).status == 0
        first[kind] = [line["loss"] for line in read_lines(tmp_path / kind / "metrics.jsonl") if line["step"] == 1]
    (train, valid), (train_within, valid_within) = first.values()
    assert train_within == pytest.approx(train, rel=0.2) and abs(train_within - train) > 1e-4
    assert valid_within == pytest.approx(valid, rel=0.2) and max(abs(valid_within[source] - valid[source]) for source in valid) > 1e-4


def test_it_belongs_to_the_run(crystal, tiny_overrides, trained):
    result = crystal(*tiny_overrides, "attention=document", f"run.dir={trained}")
    assert result.status == 2 and "attention=document (there: full); expected the same settings; give another run.dir" in result.err
