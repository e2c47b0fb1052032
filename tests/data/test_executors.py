"""Executors: every task is run wherever it is, errors come back in one line, and the bytes are the same."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

import crystal.__main__  # noqa: F401 (it stores the schema, which composing needs)
from crystal.data.executors import Executor, Here, Local, Ray, Slurm
from crystal.data.shards import Prepared
from crystal.errors import UserError
from tests.data.conftest import prepare_corpus


@dataclass(frozen=True)
class Touch:
    """A step that leaves a file for each of its items."""

    folder: Path
    n: int

    def __call__(self, rank: int, n_tasks: int) -> None:
        for k in range(self.n)[rank::n_tasks]:
            with open(self.folder / f"{k}", "x") as file:
                file.write(str(os.getpid()))


@dataclass(frozen=True)
class Refuse:
    def __call__(self, rank: int, n_tasks: int) -> None:
        if rank == n_tasks - 1:
            raise UserError("a thing; expected another; mend it")


@dataclass(frozen=True)
class Fail:
    def __call__(self, rank: int, n_tasks: int) -> None:
        raise ZeroDivisionError("a bug")


STEPS = os.pathsep.join(str(Path(__file__).parents[k]) for k in (1, 2))  # where other processes find the steps above, and crystal
FAKE_SBATCH = """#!/bin/bash
# Runs the array of a job script at once, one task after the other, as if by Slurm.
for argument; do script=$argument; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
if grep -q merge_stats "$script"; then echo Submitted batch job 2; exit; fi
for task in $(seq 0 "$last"); do
    SLURM_NODELIST=node SLURM_JOB_ID=1 SLURM_ARRAY_TASK_ID=$task bash "$script" >/dev/null 2>&1
done
echo Submitted batch job 1
"""
FAKE_SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands as far as they are needed, in front of all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    texts = {"sbatch": FAKE_SBATCH, "srun": FAKE_SRUN, "squeue": "#!/bin/bash\n", "scontrol": "#!/bin/bash\necho node\n"}
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", STEPS)
    return folder


@pytest.fixture(scope="module")
def ray_cluster():
    """Two workers on this machine."""
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": STEPS}}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 << 20,
        runtime_env=environment,
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize("executor", [Here(), Here(3), Local(workers=2), Local(workers=1, tasks=5), Local(workers=3, tasks=2)], ids=repr)
def test_every_item_is_done_once(executor: Executor, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    executor.run(Touch(tmp_path, 7), 7, tmp_path / "logs")
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == [str(k) for k in range(7)]
    assert capfd.readouterr() == ("", "")


def test_local_works_in_other_processes(tmp_path: Path) -> None:
    Local(workers=2, tasks=4).run(Touch(tmp_path, 4), 4, tmp_path / "logs")
    assert str(os.getpid()) not in {path.read_text() for path in tmp_path.glob("[0-9]")}


@pytest.mark.parametrize("executor", [Here(2), Local(workers=2, tasks=3), Local(workers=1)], ids=repr)
def test_what_the_user_can_mend_comes_back(executor: Executor, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="^a thing; expected another; mend it$"):
        executor.run(Refuse(), 3, tmp_path / "logs")
    assert capfd.readouterr() == ("", "")


def test_a_bug_is_no_user_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Local(workers=2).run(Fail(), 3, tmp_path / "logs")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Local(workers=0), "executor.workers=0; expected a finite number above 0"),
        (lambda: Slurm("p", tasks=-1), "executor.tasks=-1; expected"),
        (lambda: Ray(cpus_per_task=0), "executor.cpus_per_task=0; expected"),
    ],
)
def test_bad_counts(make, line):
    with pytest.raises(UserError, match=line):
        make()


@pytest.mark.parametrize(("name", "kind"), [("local", Local), ("slurm", Slurm), ("ray", Ray)])
def test_the_command_line_chooses_them(name: str, kind: type) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", [f"executor={name}", *(["executor.partition=cpu"] if name == "slurm" else [])])
    assert isinstance(instantiate(config.executor), kind)


def test_slurm(cluster: Path, tmp_path: Path) -> None:
    Slurm("cpu", tasks=3).run(Touch(tmp_path, 7), 7, tmp_path / "logs")
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == [str(k) for k in range(7)]


def test_slurm_tells_what_a_task_refused_and_what_died(cluster: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^a thing; expected another; mend it$"):
        Slurm("cpu", tasks=3).run(Refuse(), 3, tmp_path / "refused")
    with pytest.raises(UserError, match="job 1 has ended before its 2 tasks; expected all of them done; see .*slurm_logs"):
        Slurm("cpu", tasks=2).run(Fail(), 3, tmp_path / "failed")


def test_slurm_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="executor=slurm, and no sbatch on this machine; expected .*executor=local"):
        Slurm("cpu").run(Refuse(), 3, tmp_path / "logs")


def test_ray_tells_what_a_task_refused(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^a thing; expected another; mend it$"):
        Ray(tasks=2).run(Refuse(), 2, tmp_path / "logs")


def bytes_below(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("executor", [Local(workers=1, tasks=1), Local(workers=2, tasks=4), Slurm("cpu", tasks=2)], ids=repr)
def test_the_same_bytes_whoever_prepares(executor: Executor, cluster: Path, corpus: Path, prepared: Prepared, tmp_path: Path) -> None:
    prepare_corpus(corpus, tmp_path / "out", executor=executor)
    assert bytes_below(tmp_path / "out") == bytes_below(prepared.folder)


def test_the_same_bytes_by_ray(ray_cluster: None, corpus: Path, prepared: Prepared, tmp_path: Path) -> None:
    prepare_corpus(corpus, tmp_path / "out", executor=Ray(tasks=3, workers=2))
    assert bytes_below(tmp_path / "out") == bytes_below(prepared.folder)
