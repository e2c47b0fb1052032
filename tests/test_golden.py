"""The losses of three chained stages against files in tests/golden, with each set of the processor's instructions in a process of its own.

Between instruction sets they differ by about 5e-6. A change that moves them is a change of the numbers: say so where it is made, and
make the files anew with `python -m tests.golden`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
INSTRUCTIONS = {
    "all": {}, "default": {"ATEN_CPU_CAPABILITY": "default"}, "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
}  # fmt: skip


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_golden_losses(instructions, tmp_path):
    if instructions == "avx2" and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this processor has no AVX2")
    environment = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"} | INSTRUCTIONS[instructions]
    command = [sys.executable, "-m", "tests.golden", str(tmp_path)]
    done = subprocess.run(command, cwd=GOLDEN.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stage in "123":
        expected, got = (np.loadtxt(folder / f"stage{stage}.txt") for folder in (GOLDEN, tmp_path))
        assert got.shape == expected.shape == (30,)
        worst = int(np.abs(got - expected).argmax())
        assert abs(got[worst] - expected[worst]) < TOLERANCE, f"stage {stage}, step {worst + 1}: {got[worst]}, golden {expected[worst]}"


def test_the_golden_losses_fall():
    losses = [np.loadtxt(GOLDEN / f"stage{stage}.txt") for stage in "123"]
    assert losses[0][-5:].mean() < 0.3 * losses[0][:5].mean()
    assert all(stage[-5:].mean() < stage[:5].mean() for stage in losses)
