"""One task of lm-eval as a benchmark of `task=evaluate`: its score, its standard error, its version.

The surprise: most tasks' data are on the Hugging Face hub, whose client tries a hub that does not answer for half a minute a file. So it
is knocked at once, briefly; where it does not answer, only the local cache is looked into, and a task that is not there is absent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.error import HTTPError

from benchmarks.code.hub import knock
from benchmarks.code.problems import BenchmarkAbsent
from crystal.errors import UserError, require

if TYPE_CHECKING:
    from crystal.generate import Completer

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
JUDGED_BY_CODE_EVAL = ("humaneval", "mbpp")  # lm-eval's tasks that run programs, and run them by code_eval: ours


@dataclass(frozen=True)
class LmEvalTask:
    """`task`: a task or group of lm-eval, or one of the YAML files in the folder `include`. `shots` (None: the task's own): examples
    before each question. `metric` (None: the task's first) makes the score. `limit`: the first so many documents of each task.
    """

    task: str
    shots: int | None = None
    metric: str | None = None
    limit: int | None = None
    include: str | None = None

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, f"limit={self.limit} of {self.task}", "a count of documents", "leave it out for all")
        require(self.shots is None or self.shots >= 0, f"shots={self.shots} of {self.task}", "a count of examples", "give 0 for none")

    @property
    def name(self) -> str:
        return self.task

    def evaluate(self, completer: Completer, *, batch_size: int, seed: int) -> dict[str, Any]:
        """The scores, to be written as they are. Raises BenchmarkAbsent without its data, UserError for what the user can mend."""
        began = time.perf_counter()
        self.refuse_unknown()
        from benchmarks.language.model import CrystalLM

        model = CrystalLM(completer, batch_size=batch_size, seed=seed)
        judged = self.task.startswith(JUDGED_BY_CODE_EVAL)
        with _reachable_hub() as hub, _sandboxed() if judged else nullcontext():
            from lm_eval import simple_evaluate

            try:
                found = simple_evaluate(
                    model, tasks=[self.task], num_fewshot=self.shots, limit=self.limit, task_manager=_manager(self.include),
                    random_seed=None, numpy_random_seed=None, torch_random_seed=None,  # these are the trainer's, if it goes on
                    log_samples=False, confirm_run_unsafe_code=judged,
                )  # fmt: skip
            except OSError as error:  # of the data sets library, where it has neither cache nor hub
                raise BenchmarkAbsent(f"the data of lm-eval's {self.task} could not be had ({error}); {hub}") from error
            except ValueError as error:
                if "marked as unsafe" not in str(error):
                    raise
                raise UserError(f"{self.task} runs programs outside of any sandbox; expected a task that does not; leave it out") from error
        return self._scores(found, seconds=time.perf_counter() - began)

    def refuse_unknown(self) -> None:
        """Raise UserError where lm-eval is missing or has no such task; seconds, the first time."""
        known = self.task in _manager(self.include).all_tasks
        require(known, f"lm-eval has no task {self.task}", "a name that `lm-eval ls tasks` shows", "mend it, or give include=FOLDER")

    def _scores(self, found: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
        values = {name: value for name, value in found["results"][self.task].items() if isinstance(value, float)}
        metrics = {name: value for name, value in values.items() if "_stderr" not in name}
        metric = next((name for name in metrics if self.metric in (None, name, name.partition(",")[0])), None)
        require(metric is not None, f"metric={self.metric} of {self.task}", f"one of {', '.join(metrics)}", "mend it")
        assert metric is not None
        name, _, filtered = metric.partition(",")
        leaves = [task for task in found["n-samples"] if task in found["results"]]
        stderr = values.get(f"{name}_stderr,{filtered}")
        ci95 = None if stderr is None else [metrics[metric] + side * Z_95 * stderr for side in (-1, 1)]
        return {
            "benchmark": self.task,
            "status": "scored",
            "kind": "lm_eval",
            "source": "EleutherAI/lm-evaluation-harness",
            "version": str(found["versions"].get(self.task)),
            "metric": metric,
            "score": metrics[metric],
            "stderr": stderr,
            "ci95": ci95,
            "metrics": values,
            "subtasks": {task: found["results"][task].get(metric) for task in leaves if task != self.task},
            "shots": max(found["n-shot"].get(task, 0) for task in leaves),
            "problems_total": sum(found["n-samples"][task]["effective"] for task in leaves),
            "seconds": round(seconds, 3),
            "versions": {package: metadata.version(package) for package in ("lm-eval", "datasets", "torch")},
        }


@cache
def _manager(include: str | None) -> Any:
    """lm-eval's table of its tasks: seconds to make, so made once."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"no package {error.name}; language benchmarks are lm-eval's tasks; pip install 'crystal-trainer[lm-eval]'"
        ) from error
    return TaskManager(include_path=include)


def _sandboxed() -> AbstractContextManager[None]:
    from benchmarks.code.metric import offline_code_eval

    return offline_code_eval()


@contextmanager
def _reachable_hub() -> Iterator[str]:
    """Knock; within it the hub's clients ask no hub that does not answer. Says what would bring data that are missing."""
    import datasets.config
    from huggingface_hub import constants

    try:
        if not constants.HF_HUB_OFFLINE:
            knock(constants.ENDPOINT)
        offline = constants.HF_HUB_OFFLINE
    except HTTPError:  # an answer
        offline = False
    except (OSError, ValueError):
        offline = True
    with patch.object(constants, "HF_HUB_OFFLINE", offline), patch.object(datasets.config, "HF_HUB_OFFLINE", offline):
        yield "they come from the Hugging Face hub or its local cache (HF_HOME)" + "; the hub does not answer here" * offline
