"""The main job as a whole: how soon it trains and how much memory it takes; and the real-format data with LLaMA's tokenizer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from crystal.runlog import read_json, read_lines
from tests.shared import SHARED_DATA, needs_sample


def vm_hwm(pid: int) -> int:
    """A process's peak memory in KiB; getrusage's also counts what the parent had when it forked."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    return int(next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), 0))


def test_the_first_step_comes_soon_in_little_memory(corpus, tiny_overrides, tmp_path):
    """The tiny preset at its own size: under 20 s to the first step once data is prepared, under 2.5 GiB at the peak."""
    shape = ("model.", "scale.seq_len", "data.out=", "tokens=", "scale.batch_rows")
    own = [override for override in tiny_overrides if not override.startswith(shape)]
    own += [
        f"data.out={tmp_path / 'rows'}",
        "model.vocab_size=1024",
        "tokens=16000",
        "data.empty_source=redistribute",
        "scale.valid_every=1000",
        f"run.dir={tmp_path / 'run'}",
    ]
    subprocess.run([sys.executable, "-m", "crystal", "task=prepare", *own], check=True, capture_output=True)
    t0 = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "crystal", *own], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics, first_s, peak_kib = tmp_path / "run" / "metrics.jsonl", None, 0
    while process.poll() is None and time.monotonic() - t0 < 60:
        if first_s is None and metrics.exists() and metrics.stat().st_size:
            first_s = time.monotonic() - t0
        peak_kib = max(peak_kib, vm_hwm(process.pid))
        time.sleep(0.05)
    assert process.wait() == 0 and first_s is not None, process.stderr and process.stderr.read()
    assert first_s < 20
    assert 2**18 < peak_kib < 2.5 * 2**20


@needs_sample
def test_all_stages_on_real_format_data_with_llamas_tokenizer(crystal, tmp_path):
    run = tmp_path / "run"
    result = crystal(
        "data=crystalcoder", f"data.root={SHARED_DATA}", f"data.out={tmp_path / 'rows'}", f"run.dir={run}", "model=tiny", "eval=none",
        "model.d_model=64", "model.n_heads=1", "model.n_layers=1", "model.d_ffn=64", "scale.seq_len=256", "tokens=8000",
        "data.valid_rows=1", f"data.decontaminate.against.mbpp.path={SHARED_DATA}/eval/mbpp.jsonl",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert read_json(run / "run.json", {})["model"]["vocab_size"] == 32032
    assert {line["stage"] for line in read_lines(run / "metrics.jsonl")} == set("123")
    assert Path(run / "report" / "index.html").exists()
