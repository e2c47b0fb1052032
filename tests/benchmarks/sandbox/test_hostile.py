"""What each hostile program, forgery and honest program comes to in each layer of the sandbox, and what is left behind: nothing.

The surprise: all of a layer run in one pool, hostile and honest in turn (`suite`), so every verdict here is that of a program with hostile
neighbours. A layer that this machine does not permit is skipped with its reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.benchmarks.sandbox.forgeries import FORGERIES
from tests.benchmarks.sandbox.honest import PRIVILEGED
from tests.benchmarks.sandbox.hostile import GROUPS
from tests.benchmarks.sandbox.suite import CHECKOUT
from tests.benchmarks.sandbox.trespasses import GROUPS as TRESPASSES

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
EXPECTED = {f"{group}/{one.name}": one for group, programs in (GROUPS | TRESPASSES | FORGERIES).items() for one in programs}


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces", "seccomp", "namespaces as nobody", "bubblewrap as nobody"])
def suite(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `suite` found in one layer; root has its own ways to build them, so what others can do is tried as nobody."""
    layer, _, other = request.param.partition(" as ")
    python = _as_nobody() if other else [sys.executable]
    command = [*python, "-m", "tests.benchmarks.sandbox.suite", layer]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    if done.returncode and "UserError" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _as_nobody() -> list[str]:
    """The command of an interpreter as an ordinary user, who may not see a virtual environment or checkout below /root."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become nobody, by setpriv")
    for python in (sys.executable, shutil.which("python3.11", path="/usr/bin:/usr/local/bin")):
        sees = "import os, sys, benchmarks.code.execution; os.stat(os.path.realpath(sys.executable))"
        if python and subprocess.run([*NOBODY, python, "-c", sees], cwd=CHECKOUT, capture_output=True).returncode == 0:
            return [*NOBODY, python]
    pytest.skip("nobody may not read the interpreter or the checkout")


def test_there_are_enough() -> None:
    assert len(EXPECTED) >= 60


def test_none_passes_and_each_is_told_apart(suite: dict[str, Any]) -> None:
    wrong = {}
    for name, expected in EXPECTED.items():
        verdict = suite["verdicts"][name]
        reason = verdict["reason"]
        as_expected = verdict["result"] in expected.results and (verdict["result"] == "contained" or re.search(expected.reason, reason))
        if verdict["passed"] or verdict["result"] == "passed" or not as_expected or "Escaped" in reason:
            wrong[name] = verdict
    assert wrong == {}


def test_every_reason_is_one_line(suite: dict[str, Any]) -> None:
    reasons = {name: verdict["reason"] for name, verdict in suite["verdicts"].items()}
    assert [name for name, reason in reasons.items() if len(reason) > 600 or not reason.isprintable()] == []
    assert [name for name, verdict in suite["verdicts"].items() if verdict["passed"] == bool(verdict["reason"])] == []


def test_honest_programs_pass_beside_them(suite: dict[str, Any]) -> None:
    """And so does the right answer to each forgery's check. Without namespaces of its own none may write files or start processes."""
    refused = {name for name, *_ in PRIVILEGED} if "namespaces for each program" in suite["sandbox"]["missing"] else set()
    wrong = {
        name: verdict
        for name, verdict in suite["verdicts"].items()
        if name.startswith(("honest/", "right/")) and name.split("/")[1] not in refused and not verdict["passed"]
    }
    assert wrong == {}


def test_nothing_got_out(suite: dict[str, Any]) -> None:
    assert suite["received"] == []
    assert not suite["canary"] and not suite["bystander"]
    assert suite["outside"] == []


def test_nothing_goes_on(suite: dict[str, Any]) -> None:
    assert suite["processes"] == []
