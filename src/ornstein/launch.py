"""What a launcher (`torchrun`, `accelerate launch`, `srun`, OpenMPI's `mpirun`) says of this process; imports no torch.

torchrun's variables win. `join` sets them from those of the others, for what reads torchrun's alone.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import NamedTuple

__all__ = ["join", "launched", "local_rank", "rank"]


class _Names(NamedTuple):
    """The variables of a launcher: processes, number of this one, number and count on this machine, and the job."""

    world: tuple[str, ...]
    rank: str
    local_rank: str
    local_world: str
    job: tuple[str, ...]


_TORCHRUN = _Names(("WORLD_SIZE",), "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", ())
# In a script of sbatch itself, which is one process, SLURM_NTASKS counts those that srun would start.
_SRUN = _Names(
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID", "SLURM_LOCALID", "", ("SLURM_JOB_ID", "SLURM_STEP_ID")
)
_MPIRUN = _Names(
    ("OMPI_COMM_WORLD_SIZE",),
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
)


def launched() -> int:
    """The number of processes of the launch; 1 without a launcher."""
    names = _launcher()
    return 1 if names is None else max(1, _world(names))


def rank() -> int:
    """The number of this process in the launch; 0 without a launcher."""
    names = _launcher()
    return _number(names.rank) if names is not None and launched() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine; 0 without a launcher."""
    known = (each.local_rank for each in (_TORCHRUN, _MPIRUN, _SRUN))
    return next((_number(name) for name in known if os.environ.get(name)), 0)


def join() -> None:
    """Set torchrun's variables from those of another launcher, so that the processes find each other.

    The address is that of the first machine, or MASTER_ADDR if it is set; the port follows from the number of the job.
    """
    names = _launcher()
    if names is None or names is _TORCHRUN or launched() == 1:
        return
    job = "-".join(os.environ.get(name, "") for name in names.job)
    values = {
        "WORLD_SIZE": launched(),
        "RANK": rank(),
        "LOCAL_RANK": local_rank(),
        "LOCAL_WORLD_SIZE": max(1, _number(names.local_world) or _here() or launched()),
        "MASTER_ADDR": _first_host(os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or ""),
        "MASTER_PORT": 20_000 + zlib.crc32(job.encode()) % 20_000,
    }
    for name, value in values.items():
        os.environ.setdefault(name, str(value))


def _launcher() -> _Names | None:
    """The variables of the launcher of this process, None if there is none."""
    if "WORLD_SIZE" in os.environ:
        return _TORCHRUN
    if _number("OMPI_COMM_WORLD_SIZE"):
        return _MPIRUN
    in_step = _number("SLURM_STEP_NUM_TASKS") or os.environ.get("ENVIRONMENT") != "BATCH"
    return _SRUN if in_step and _world(_SRUN) and os.environ.get(_SRUN.rank, "").isdecimal() else None


def _world(names: _Names) -> int:
    return next((number for name in names.world if (number := _number(name))), 0)


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def _here() -> int:
    """Tasks of an srun on this machine: of "4(x2),3" on three machines 4, 4 and 3."""
    counts: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is not None and int(match[2] or 1) <= 1_000_000:
            counts += [int(match[1])] * int(match[2] or 1)
    node = _number("SLURM_NODEID")
    return counts[node] if node < len(counts) else 0


def _first_host(nodes: str) -> str:
    """The first machine of Slurm's list: "gpu03" of "gpu[03-07,12],cpu1"."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    return "127.0.0.1" if match is None else match[1] + (match[2] or "") + (match[3] or "")
