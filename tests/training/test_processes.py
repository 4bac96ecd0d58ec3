"""Two processes over gloo against one, in real processes: forks of a parent that imports torch once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ornstein.errors import RunError, UserError
from ornstein.training import processes
from ornstein.training.state import STATE
from ornstein.training.train import train

pytest.importorskip("accelerate")

WORKER = """
import importlib.util, os, socket, sys, time, traceback
from pathlib import Path
spec = importlib.util.spec_from_file_location("toys", sys.argv[1])
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
import accelerate, torch
import ornstein as orn
from ornstein.autoencoders import AutoencoderLoss, VQAutoencoder
from ornstein.errors import RunError, UserError
from ornstein.training import TrainConfig, run_task, train
from ornstein.training.autoencoder import Autoencoding
torch.set_num_threads(1)
root = Path(sys.argv[2])

def job(out, steps, resume=False, accumulate=1, batch=8, slow=False, **settings):
    config = TrainConfig(steps=steps, batch=batch, checkpoint_every=10, warmup=3, precision="float32",
                         accumulate=accumulate)
    states = train(toys.tiny_denoiser(dropout=0.0, **settings), toys.Stripes(), config, root / out, resume)
    for state in states:
        if slow:
            print(os.environ["RANK"], os.getpid(), state.step, flush=True)
            time.sleep(0.02)

def codebook(out, adversarial=0.0):
    torch.manual_seed(0)
    model = VQAutoencoder(1, 8, codes=8, latent_channels=2, width=8, depths=(1, 1, 1), attention=0)
    loss = AutoencoderLoss(model, reconstruction="l1", adversarial_weight=adversarial, adversarial_start=0.5)
    config = TrainConfig(steps=12, batch=8, checkpoint_every=10, warmup=3, precision="float32")
    for state in run_task(Autoencoding(loss), toys.Stripes(), config, root / out):
        pass

def launch(world, f, *arguments, **settings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            if world > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                f(*arguments, **settings)
                code = 0
            except (UserError, RunError) as error:
                print(f"rank {rank}: {error}", flush=True)
            except KeyboardInterrupt:
                code = 130
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitpid(pid, 0)[1] >> 8 for pid in children]
"""

TOYS = str(Path(__file__).with_name("conftest.py"))
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}


def start(tmp_path: Path, script: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER + script, TOYS, str(tmp_path)]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(tmp_path: Path, script: str) -> str:
    process = start(tmp_path, script)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    return out


def curve(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def same_curve(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    first, second = curve(a), curve(b)
    assert first.keys() == second.keys()
    assert max(abs(first[k] - second[k]) for k in first) < tolerance
    weights = [load_file(each / "model.safetensors") for each in (a, b)]
    assert max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0]) < 1e-3


def test_one_and_two_processes_train_the_same(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        """
assert launch(1, job, "one", 50) == [0]
assert launch(2, job, "two", 50) == [0, 0]
assert launch(1, job, "parts", 50, accumulate=4) == [0]
assert launch(2, job, "both", 20, accumulate=2) == [0, 0]
# on another number of processes, there and back
assert launch(1, job, "both", 30, resume=True) == [0]
assert launch(2, job, "both", 50, resume=True) == [0, 0]
assert launch(2, job, "odd", 50, batch=9) == [1, 1]
assert launch(2, job, "both", 60, resume=True, batch=10) == [1, 1]
launch(1, codebook, "vq1"); launch(2, codebook, "vq2")
assert launch(2, codebook, "gan2", adversarial=0.1) == [0, 0]
""",
    )
    for other in ("two", "parts", "both"):
        same_curve(tmp_path / "one", tmp_path / other)
    assert len(curve(tmp_path / "one")) == 5
    # what only one process may write is there once
    assert [line for line in out.splitlines() if "9 does not divide among 2 processes: use a multiple of 2" in line]
    assert "training.batch = 8, and 10 is asked for" in out
    assert not (tmp_path / "odd").exists()
    same_curve(tmp_path / "vq1", tmp_path / "vq2", 1e-4)
    entries = [load_file(tmp_path / name / "model.safetensors")["codebook.entries"] for name in ("vq1", "vq2")]
    torch.testing.assert_close(*entries, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_other_with_one_line(tmp_path: Path, victim: int) -> None:
    process = start(tmp_path, "launch(2, job, 'run', 100000, slow=True)")
    assert process.stdout is not None
    pids = {}
    for line in process.stdout:
        rank, pid, step = map(int, line.split())
        pids[rank] = pid
        if step >= 14 and len(pids) == 2:
            break
    os.kill(pids[victim], signal.SIGKILL)
    began = time.monotonic()
    rest, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    told = [line for line in rest.splitlines() if line.startswith("rank ")]
    assert len(told) == 1 and told[0].startswith(f"rank {1 - victim}: step "), rest
    assert "another of the 2 processes has ended" in told[0] and "--resume" in told[0]
    assert "Traceback" not in errors
    # and it goes on from the last checkpoint
    run(tmp_path, "assert launch(1, job, 'run', 30, resume=True) == [0]")
    run(tmp_path, "assert launch(1, job, 'whole', 30) == [0]")
    same_curve(tmp_path / "whole", tmp_path / "run")


def test_a_signal_to_one_process_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, "print('codes', launch(2, job, 'run', 100000, slow=True), flush=True)")
    assert process.stdout is not None
    for line in process.stdout:
        rank, pid, step = map(int, line.split())
        if rank == 1 and step >= 3:
            os.kill(pid, signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=60)
    codes = [line for line in rest.splitlines() if line.startswith("codes")]
    # the one that was told is between steps, where it stops at once; the other loses it, or stops with it
    assert codes[0] in ("codes [130, 130]", "codes [1, 130]")


def test_engines_that_split_the_model_are_refused(monkeypatch: pytest.MonkeyPatch, toy, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    processes.current.cache_clear()
    with pytest.raises(UserError, match="FSDP splits the model"):
        train(toy.denoiser(), toy.Images(), toy.config(), tmp_path)
    processes.current.cache_clear()


def test_the_plain_command_loads_no_accelerate() -> None:
    script = "import ornstein, ornstein.cli, sys; print('accelerate' in sys.modules, 'datasets' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_accumulation_is_the_same_to_rounding_and_refuses_what_it_cannot(toy, tmp_path: Path) -> None:
    def losses(name: str, **settings) -> torch.Tensor:
        states = train(toy.denoiser(dropout=0.0), toy.Images(), toy.config(**settings), tmp_path / name)
        return torch.tensor([state.loss for state in states])

    torch.testing.assert_close(losses("a"), losses("b", accumulate=8), rtol=0, atol=1e-5)
    # a run may go on in other parts
    rest = list(
        train(toy.denoiser(dropout=0.0), toy.Images(), toy.config(steps=14, accumulate=2), tmp_path / "a", resume=True)
    )
    assert [state.step for state in rest] == [13, 14]
    with pytest.raises(UserError, match="a batch of 8 does not divide among 1 process in 3 parts each"):
        losses("c", accumulate=3)
    assert not (tmp_path / "c").exists()


def test_another_process_that_is_gone_is_not_taken_for_any_error() -> None:
    class Two(processes.Processes):
        def __init__(self) -> None:
            super().__init__()
            self.world = 2

    assert Two().lost(RuntimeError("[...gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"))
    assert not Two().lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not processes.Processes().lost(RuntimeError("Connection closed by peer"))
    assert issubclass(RunError, Exception) and STATE.name
