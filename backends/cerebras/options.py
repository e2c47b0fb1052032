"""What of the SDK can be set, typed: the cluster (every field of its ClusterConfig) and the flags of CS systems that matter.

The surprise: the names and meanings are the SDK's own (2.10), so that its documentation serves; only `num_csx` may be left open. The SDK
is imported where its objects are made, in its own environment; everywhere else these are plain values.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crystal.config import UserError, require, require_positive

# Processes of the cluster whose memory can be limited: coordinators, input workers, activation, command, weight and chief servers.
GIB_LIMITS = ("compile_crd", "execute_crd", "wrk", "act", "cmd", "wgt", "chf")
ON_SYSTEMS, ON_CPU = ("cbfloat16", "bfloat16", "float16"), ("float32", "bfloat16", "cbfloat16")
CRYSTALCODER_ROWS = 2112


@dataclass
class Cluster:
    """`cstorch.distributed.ClusterConfig`. On a user node its own files give the address; elsewhere mgmt_address does."""

    num_csx: int | None = None  # systems that share a batch; null: 16, as CrystalCoder, for its batch, otherwise 1
    num_workers_per_csx: int = 1  # processes that feed each system
    max_wgt_servers: int = 0  # 0: as the cluster decides
    max_act_per_csx: int = 0  # activation servers; 0: as the cluster decides
    mgmt_address: str | None = None  # HOST:PORT
    mgmt_namespace: str | None = None
    credentials_path: str | None = None  # certificate for the address
    cbcore_image: str | None = None  # container with the compiler; null: the cluster's
    job_labels: list[str] = field(default_factory=list)  # KEY=VALUE
    job_priority: str = "p2"  # p1 (first) | p2 | p3
    job_time_sec: int | None = None  # limit, without the time in the queue
    mount_dirs: list[str] = field(default_factory=list)  # folders that workers see, besides Crystal's own and the data's
    python_paths: list[str] = field(default_factory=list)  # on the workers' PYTHONPATH, besides Crystal's own
    automount: bool = True
    mount_all: bool = True
    disable_mount_check: bool = True
    disable_version_check: bool = False
    workflow_id: str | None = None
    notifications: list[dict[str, Any]] = field(default_factory=list)  # {mailto | slack | pagerduty: [...], severity_threshold: 3}

    def __post_init__(self) -> None:
        if self.num_csx is not None:
            require_positive("backend.cluster", {"num_csx": self.num_csx})
        require_positive("backend.cluster", {"num_workers_per_csx": self.num_workers_per_csx})
        known = ("p1", "p2", "p3")
        require(self.job_priority in known, f"backend.cluster.job_priority={self.job_priority}", ", ".join(known), "mend it")
        self.mount_dirs, self.python_paths = _absolute(self.mount_dirs), _absolute(self.python_paths)
        if self.credentials_path is not None:
            (self.credentials_path,) = _absolute([self.credentials_path])

    def systems(self, batch_rows: int) -> int:
        """How many systems share a batch of so many rows. Raises UserError where they cannot."""
        n = self.num_csx or (16 if batch_rows == CRYSTALCODER_ROWS else 1)
        got, expected = f"backend.cluster.num_csx={n}", f"a divisor of scale.batch_rows={batch_rows}"
        require(batch_rows % n == 0, got, expected, "mend one of them")
        return n

    @contextmanager
    def refusals(self, starting: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """What the cluster refuses while `starting`, or that there is none, as a UserError. The SDK raises it when an executor begins.

        Known by where it comes from: a host that does not answer is an Exception and no more, others have classes of gRPC's.
        """
        try:
            yield
        except Exception as error:
            if not starting() or "cerebras/appliance/appliance_manager.py" not in "".join(traceback.format_tb(error.__traceback__)):
                raise
            said = ((error.details() if hasattr(error, "details") else str(error)) or type(error).__name__).splitlines()[0]
            where = "the user node's cluster" if self.mgmt_address is None else f"the cluster at {self.mgmt_address}"
            remedy = "mend backend.cluster (elsewhere than on a user node it needs mgmt_address=HOST:PORT), or give backend.mode=validate"
            raise UserError(f"{where}: {said}; expected a cluster that takes the job; {remedy}") from error


def _absolute(paths: list[str]) -> list[str]:
    """The process that uses them works in another folder."""
    return [str(Path(path).absolute()) for path in paths]


@dataclass
class Csx:
    """Flags of CS systems: `cstorch.backends.csx`."""

    optimization_level: int = 1  # of precision: 0 (most exact) to 2 (fastest); CrystalCoder had 1
    micro_batch_size: Any = "auto"  # rows at once on a system: auto, explore, {explore: {min: N, max: N}}, a number, or null: all
    transfer_processes: int = 5  # that move weights and checkpoints
    max_transfer_bytes: int | None = None  # at once; null: the SDK's
    compress_weights: bool = False  # in checkpoints
    lazy_initialization: bool = True
    fabric_type_blacklist: list[str] | None = None  # kinds of systems not to use: cs2, cs3
    memory_gi: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(GIB_LIMITS))  # null: as the cluster decides, -1: all

    def __post_init__(self) -> None:
        got = f"backend.csx.optimization_level={self.optimization_level}"
        require(self.optimization_level in (0, 1, 2), got, "0, 1 or 2", "CrystalCoder had 1")
        unknown = sorted(set(self.memory_gi) - set(GIB_LIMITS))
        require(not unknown, f"backend.csx.memory_gi has {', '.join(unknown)}", f"some of {', '.join(GIB_LIMITS)}", "mend it")

    def apply(self) -> None:
        """Set the SDK's flags; before its backend is made."""
        import cerebras.pytorch as cstorch

        flags = cstorch.backends.csx
        flags.precision.optimization_level = self.optimization_level
        flags.performance.micro_batch_size = self.micro_batch_size
        flags.performance.transfer_processes = self.transfer_processes
        if self.max_transfer_bytes is not None:
            flags.performance.max_transfer_bytes = self.max_transfer_bytes
        flags.performance.compress_weights = self.compress_weights
        flags.debug.lazy_initialization = self.lazy_initialization
        flags.debug.fabric_type_blacklist = self.fabric_type_blacklist
        for process, gib in self.memory_gi.items():
            setattr(flags.debug, f"{process}_memory_gi", gib)


@dataclass
class Options:
    """What the process in the SDK's environment is told. folders: that a cluster's workers must see."""

    device: str
    dtype: str
    artifact_dir: str
    compile_dir: str | None
    cluster: Cluster
    csx: Csx
    folders: list[str]

    def __post_init__(self) -> None:
        known = ("csx", "cpu")
        require(self.device in known, f"backend.device={self.device}", " or ".join(known), "mend backend.device")
        types = ON_CPU if self.device == "cpu" else ON_SYSTEMS
        got = f"backend.dtype={self.dtype} on backend.device={self.device}"
        require(self.dtype in types, got, ", ".join(types), "mend backend.dtype")

    def compute_dtype(self) -> str:
        """cbfloat16 is the systems' own; elsewhere it is bfloat16, as in ModelZoo."""
        return "bfloat16" if self.device == "cpu" and self.dtype == "cbfloat16" else self.dtype

    def start(self, *, mode: str, batch_rows: int) -> Any:
        """The SDK's backend, of which a process can have one. mode: "train", "compile" or "validate". Raises UserError."""
        import cerebras.pytorch as cstorch

        artifacts = str(Path(self.artifact_dir).absolute())
        if self.device == "cpu":
            return cstorch.backend("CPU", artifact_dir=artifacts)
        certificate = self.cluster.credentials_path
        got = f"backend.cluster.credentials_path={certificate}"
        require(certificate is None or Path(certificate).is_file(), got, "the file of a certificate", "mend it")
        root = str(Path(__file__).parents[2])
        fields = asdict(self.cluster) | {
            "num_csx": self.cluster.systems(batch_rows),
            "mount_dirs": [*self.cluster.mount_dirs, root, *_absolute([folder for folder in self.folders if Path(folder).exists()])],
            "python_paths": [*self.cluster.python_paths, root],
        }
        try:
            self.csx.apply()
            cluster = cstorch.distributed.ClusterConfig(**fields)
        except (ValueError, TypeError) as error:  # what the SDK says of a value
            said = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"backend.cluster or backend.csx: {said}; expected what the SDK takes; mend it") from error
        only = {"compile_only": mode == "compile", "validate_only": mode == "validate"}
        where = {} if self.compile_dir is None else {"compile_dir": self.compile_dir}
        return cstorch.backend("CSX", artifact_dir=artifacts, cluster_config=cluster, **only, **where)

    @classmethod
    def told(cls, told: dict[str, Any]) -> Options:
        """Back from `asdict`."""
        return cls(**told | {"cluster": Cluster(**told["cluster"]), "csx": Csx(**told["csx"])})
