"""Two processes over gloo against one, in real processes: forks of a parent that imports torch once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ornstein import processes
from ornstein.errors import UserError
from ornstein.training.loop import train

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

def job(out, steps=50, resume=False, batch=8, stop=None, slow=False, net="unet", **settings):
    model = toys.tiny_denoiser(dropout=0.0) if net == "unet" else toys.tiny_transformer()
    config = TrainConfig(steps=steps, batch=batch, checkpoint_every=10, warmup=3, precision="float32", **settings)
    for state in train(model, toys.Stripes(), config, root / out, resume):
        if slow:
            say(os.environ["RANK"], os.getpid(), state.step)
            time.sleep(0.02)
        if state.step == stop:
            break

def split():
    os.environ["ACCELERATE_USE_FSDP"] = "true"  # as `accelerate launch --use_fsdp` sets it

def codebook(out, adversarial=0.0):
    torch.manual_seed(0)
    model = VQAutoencoder(1, 8, codes=8, latent_channels=2, width=8, depths=(1, 1, 1))
    loss = AutoencoderLoss(model, reconstruction="l1", adversarial_weight=adversarial, adversarial_start=0.5)
    config = TrainConfig(steps=6, batch=8, checkpoint_every=10, warmup=3, precision="float32")
    for state in run_task(Autoencoding(loss), toys.Stripes(), config, root / out):
        pass

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # one write: lines of two processes do not mix

def tried(f, *arguments, **settings):
    try:
        f(*arguments, **settings)
        return 0
    except (UserError, RunError) as error:
        say(f"rank {os.environ.get('RANK', 0)}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 99

def launch(world, *calls):
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
            os._exit(max(tried(f, *arguments, **settings) for f, arguments, settings in calls))
        children.append(pid)
    say("codes", *(os.waitpid(pid, 0)[1] >> 8 for pid in children))

def call(f, *arguments, **settings):
    return f, arguments, settings

for line in sys.stdin:
    exec(line)
"""

TOYS = str(Path(__file__).with_name("conftest.py"))
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}


class Parent:
    """The process that forks those of a launch."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.errors = (root / "errors").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, TOYS, str(root)],
            env=ENVIRONMENT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def lines(self) -> Iterator[str]:
        """What the processes say, up to the exit codes of a launch."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line
            if line.startswith("codes"):
                return
        raise AssertionError((self.root / "errors").read_text())

    def launch(self, line: str) -> tuple[list[int], str]:
        """The exit codes, and what was said."""
        self.ask(line)
        *said, codes = self.lines()
        return [int(code) for code in codes.split()[1:]], "".join(said)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    parent = Parent(tmp_path_factory.mktemp("processes"))
    yield parent
    assert parent.process.stdin is not None
    parent.process.stdin.close()
    assert parent.process.wait(timeout=30) == 0
    assert "Traceback" not in (parent.root / "errors").read_text()


def curve(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def same_curve(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    first, second = curve(a), curve(b)
    assert first.keys() == second.keys()
    assert max(abs(first[k] - second[k]) for k in first) < tolerance
    weights = [load_file(each / "model.safetensors") for each in (a, b)]
    assert max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0]) < 1e-3


@pytest.mark.slow
def test_one_and_two_processes_train_the_same(parent: Parent) -> None:
    assert parent.launch("launch(1, call(job, 'one'), call(codebook, 'vq1'))") == ([0], "")
    codes, said = parent.launch(
        "launch(2, call(job, 'two'), call(job, 'three', stop=20, accumulate=2), call(codebook, 'vq2'), "
        "call(codebook, 'gan', 0.1), call(job, 'odd', batch=9))"
    )
    assert codes == [1, 1]  # the odd batch
    assert said.count("a batch of 9 does not divide among 2 processes: use a multiple of 2") == 2 == said.count("\n")
    assert not (parent.root / "odd").exists()
    # on another number of processes, there and back
    assert parent.launch("launch(1, call(job, 'three', resume=True, stop=30))") == ([0], "")
    codes, said = parent.launch("launch(2, call(job, 'three', resume=True), call(job, 'three', resume=True, batch=10))")
    assert codes == [1, 1]
    assert said.count("training.batch = 8, and 10 is asked for") == 2  # found by the first, told to both
    for other in ("two", "three"):
        same_curve(parent.root / "one", parent.root / other)
    assert len(curve(parent.root / "one")) == 5
    same_curve(parent.root / "vq1", parent.root / "vq2")
    entries = [load_file(parent.root / name / "model.safetensors")["codebook.entries"] for name in ("vq1", "vq2")]
    torch.testing.assert_close(*entries, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_split_model_trains_the_same_and_its_checkpoints_are_whole(parent: Parent) -> None:
    assert parent.launch("launch(1, call(job, 'alone'))") == ([0], "")
    codes, said = parent.launch(
        "launch(2, call(split), call(job, 'split', accumulate=2), call(job, 'moved', stop=20), call(codebook, 'vq3'))"
    )
    assert codes == [1, 1]  # the codebook
    assert said.count("FSDP splits diffusion models of images, clips and latents alone") == 2 == said.count("\n")
    same_curve(parent.root / "alone", parent.root / "split")
    # on one process, and split again
    assert parent.launch("launch(1, call(job, 'moved', resume=True, stop=30))") == ([0], "")
    assert parent.launch("launch(2, call(split), call(job, 'moved', resume=True))") == ([0, 0], "")
    same_curve(parent.root / "alone", parent.root / "moved")
    states = [load_file(parent.root / name / "state" / "trainer.safetensors") for name in ("alone", "split")]
    assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[1].items()}


@pytest.mark.slow
@pytest.mark.parametrize("net", ["unet", "dit"])
def test_a_split_model_that_computes_its_blocks_again_trains_the_same(parent: Parent, net: str) -> None:
    assert parent.launch(f"launch(1, call(job, '{net}', net='{net}', steps=20))") == ([0], "")
    split = f"launch(2, call(split), call(job, '{net}-again', net='{net}', steps=20, recompute=True))"
    assert parent.launch(split) == ([0, 0], "")
    same_curve(parent.root / net, parent.root / f"{net}-again")


@pytest.mark.slow
def test_orthogonal_steps_are_the_same_on_two_processes_and_of_a_split_model(parent: Parent) -> None:
    assert parent.launch("launch(1, call(job, 'muon', optimizer='muon'))") == ([0], "")
    assert parent.launch("launch(2, call(job, 'muon2', optimizer='muon'))") == ([0, 0], "")
    assert parent.launch("launch(2, call(split), call(job, 'muon-split', optimizer='muon'))") == ([0, 0], "")
    same_curve(parent.root / "muon", parent.root / "muon2")
    same_curve(parent.root / "muon", parent.root / "muon-split")


@pytest.mark.slow
def test_a_killed_worker_ends_the_other_with_one_line(parent: Parent) -> None:
    parent.ask("launch(2, call(job, 'killed', slow=True))")
    pids: dict[int, int] = {}
    said = parent.lines()
    for line in said:
        rank, pid, step = map(int, line.split())
        pids[rank] = pid
        if step >= 14 and len(pids) == 2:
            break
    os.kill(pids[0], signal.SIGKILL)  # the one that writes
    began = time.monotonic()
    *rest, codes = said
    assert time.monotonic() - began < 30
    assert codes.split() == ["codes", "0", "1"]  # a killed process has no exit code
    told = [line for line in rest if line.startswith("rank ")]
    assert len(told) == 1 and told[0].startswith("rank 1: step "), rest
    assert "another of the 2 processes has ended" in told[0] and "--resume" in told[0]
    # and it goes on from the last checkpoint
    assert parent.launch("launch(1, call(job, 'killed', resume=True))") == ([0], "")
    same_curve(parent.root / "one", parent.root / "killed")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(parent: Parent) -> None:
    parent.ask("launch(2, call(job, 'told', steps=10**6, slow=True))")
    said = parent.lines()
    for line in said:
        rank, pid, step = map(int, line.split())
        if rank == 0 and step >= 3:
            os.kill(pid, signal.SIGTERM)
            break
    *_, codes = said
    # between steps it stops at once, and the other loses it; within one both see it
    assert codes.split()[1:] in (["130", "1"], ["130", "130"])
    assert json.loads((parent.root / "told" / "config.json").read_text())["training"]["step"] >= 3


def test_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch, toy, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    processes.current.cache_clear()
    with pytest.raises(UserError, match="DeepSpeed is not supported"):
        train(toy.denoiser(), toy.Images(), toy.config(), tmp_path)
    processes.current.cache_clear()


def test_the_plain_command_loads_no_accelerate() -> None:
    script = "import ornstein, ornstein.cli, sys; print('accelerate' in sys.modules, 'datasets' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_accumulation_is_the_same_to_rounding_and_refuses_what_it_cannot(toy, tmp_path: Path) -> None:
    def losses(name: str, **settings) -> torch.Tensor:
        states = train(
            toy.denoiser(dropout=0.0), toy.Images(), toy.config(precision="float32", **settings), tmp_path / name
        )
        return torch.tensor([state.loss for state in states])

    torch.testing.assert_close(losses("a"), losses("b", accumulate=8), rtol=0, atol=1e-5)
    # a run may go on in other parts
    longer = toy.config(steps=14, accumulate=2, precision="float32")
    rest = list(train(toy.denoiser(dropout=0.0), toy.Images(), longer, tmp_path / "a", resume=True))
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
