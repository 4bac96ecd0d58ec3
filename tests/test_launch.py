"""What launchers say of a process, in their own variables."""

import os
import re

import pytest

from ornstein import launch
from ornstein.devices import choose_device

LAUNCHERS = re.compile(r"SLURM_|OMPI_|PMIX_|(LOCAL_)?(WORLD_SIZE|RANK)$|MASTER_|ENVIRONMENT$")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ, "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]:
        if LAUNCHERS.match(name):
            monkeypatch.setenv(name, "")  # so that what `join` sets is taken back as well
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, **variables: object) -> tuple[int, int, int]:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return launch.launched(), launch.rank(), launch.local_rank()


def test_no_launcher() -> None:
    assert (launch.launched(), launch.rank(), launch.local_rank()) == (1, 0, 0)
    launch.join()
    assert "MASTER_ADDR" not in os.environ


SRUN = {"SLURM_NTASKS": 8, "SLURM_STEP_NUM_TASKS": 8, "SLURM_PROCID": 5, "SLURM_LOCALID": 1, "SLURM_NODEID": 1}


def test_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"SLURM_STEP_NODELIST": "gpu[03-04,9]-x,cpu1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_JOB_ID": 77}
    assert given(monkeypatch, **SRUN, **more) == (8, 5, 1)
    launch.join()
    assert os.environ["MASTER_ADDR"] == "gpu03-x" and 20_000 <= int(os.environ["MASTER_PORT"]) < 40_000
    assert [os.environ[n] for n in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == ["8", "5", "1", "4"]


def test_a_script_of_sbatch_is_one_process_and_a_step_in_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    script = {"ENVIRONMENT": "BATCH", "SLURM_NTASKS": 8, "SLURM_PROCID": 0, "SLURM_LOCALID": 0}
    assert given(monkeypatch, **script) == (1, 0, 0)
    assert given(monkeypatch, **SRUN) == (8, 5, 1)


def test_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"SIZE": 4, "RANK": 3, "LOCAL_RANK": 1, "LOCAL_SIZE": 2}
    monkeypatch.setenv("MASTER_ADDR", "first")
    assert given(monkeypatch, **{f"OMPI_COMM_WORLD_{name}": value for name, value in names.items()}) == (4, 3, 1)
    launch.join()
    assert os.environ["MASTER_ADDR"] == "first" and os.environ["LOCAL_WORLD_SIZE"] == "2"


def test_torchrun_wins_and_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert given(monkeypatch, **SRUN, WORLD_SIZE=2, RANK=1, LOCAL_RANK=1) == (2, 1, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert str(choose_device("auto")) == str(choose_device("cuda")) == "cuda:1"
    assert str(choose_device("cuda:3")) == "cuda:3"
