"""Training of a student: that it finds the exact one, what is kept on disk, and that a resumed run is the same run."""

import copy
import json
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ornstein as orn
from ornstein import Data, Denoiser, Process
from ornstein.errors import UserError
from ornstein.few_steps.consistency import Consistency
from ornstein.noise import AR1, Identity
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine
from ornstein.training import TrainConfig, run_task
from ornstein.training import distil as module
from ornstein.training.distil import FOLDER, Distillation, follow_teacher, new_student
from ornstein.training.state import STATE
from ornstein.training.task import Diffusion

SIGMA = torch.tensor([[0.5, 0.2, -0.1], [0.2, 0.3, 0.05], [-0.1, 0.05, 0.2]], dtype=torch.float64)
GAUSS = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], SIGMA[None])


class Linear(nn.Module):
    """v of the exact denoiser of a Gaussian, and a matrix to learn on top of it for each of two ranges of noise."""

    def __init__(self, p: Process) -> None:
        super().__init__()
        self.p, self.config = p, {}
        self.A = nn.Parameter(torch.zeros(2, 3, 3))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        v = GAUSS.denoiser(self.p)(x, self.p.schedule.time(log_snr.double()).clamp(0, 1)).v
        return v + torch.einsum("bij,bj->bi", self.A[(log_snr > -5).long()], x)


@pytest.mark.parametrize("noise", [Identity(), AR1(3, 0.7)], ids=repr)
def test_the_student_of_a_gaussian_is_its_flow(tmp_path, noise):
    """Two steps of a linear student, trained on trajectories alone, end where the closed form says."""
    p = Process(Cosine(), noise)
    teacher = Denoiser(Linear(p), p, "v", data=Data((3,)))
    teacher.save(tmp_path / "teacher")
    followed = follow_teacher(tmp_path / "teacher", teacher, tmp_path / "student", 2, 600)
    student = new_student(teacher, 2)
    config = TrainConfig(steps=500, batch=64, learning_rate=2e-2, warmup=10, weight_decay=0.0, checkpoint_every=500)
    states = list(run_task(Distillation(student, "hash"), followed, config, tmp_path / "student"))
    assert states[-1].loss < 1e-3 * states[0].loss
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    start = p.prior((200, 3), dtype=torch.float64).sample(z).float()
    loaded = orn.load(tmp_path / "student", net=Linear(p))
    assert loaded.distilled == student.distilled
    end, exact = orn.sample(loaded, (200, 3), start=start), GAUSS.ode_map(start, p, 1.0, 0.0)
    untrained = orn.sample(teacher, (200, 3), "ddim", 2, start=start)
    error, before = (float((x - exact).square().mean().sqrt()) for x in (end, untrained))
    assert error < 0.02 and error < 0.1 * before


class Nodes(nn.Module):
    """v of the exact denoiser of a Gaussian, and a matrix to learn on top of it for each node of the times."""

    def __init__(self, p: Process, times: torch.Tensor) -> None:
        super().__init__()
        self.p, self.config, self.times = p, {}, times
        self.A = nn.Parameter(torch.zeros(len(times), 3, 3))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        t = self.p.schedule.time(log_snr.double()).clamp(0, 1)
        v = GAUSS.denoiser(self.p)(x, t).v
        return v + torch.einsum("bij,bj->bi", self.A[(self.times[:, None] - t).abs().argmin(0)], x)


class Draws:
    """Samples of the Gaussian as a training set."""

    x = GAUSS.sample(2000, torch.Generator().manual_seed(3)).float()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices, /):
        return self.x[torch.as_tensor(indices)], None


@pytest.mark.parametrize("steps", [1, 2])
def test_the_consistent_student_of_a_gaussian_is_its_flow(tmp_path, steps):
    """By consistency on noised data alone, from one node to the next, to where the closed form says."""
    p = Process(Cosine(), AR1(3, 0.7))
    objective = Consistency(Denoiser(Nodes(p, torch.ones(1)), p, "v", data=Data((3,))), steps)
    times = objective.times[:-1]
    student = new_student(Denoiser(Nodes(p, times), p, "v", data=Data((3,))), steps)
    config = TrainConfig(
        steps=400, batch=128, learning_rate=3e-2, warmup=10, weight_decay=0.0, checkpoint_every=400,
        time_sampling="uniform", ema=0.05,
    )  # fmt: skip
    task = Diffusion(student, config)
    task.objective = objective
    list(run_task(task, Draws(), config, tmp_path / "student"))
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    start = p.prior((200, 3), dtype=torch.float64).sample(z).float()
    end, exact = orn.sample(student, (200, 3), start=start), GAUSS.ode_map(start, p, 1.0, 0.0)
    plain = orn.sample(objective.teacher, (200, 3), "ddim", steps, start=start)
    error, before = (float((x - exact).square().mean().sqrt()) for x in (end, plain))
    assert error < 0.03 and error < 0.2 * before


def tiny(toy) -> Denoiser:
    d = toy.denoiser()
    d.data = Data((1, 8, 8), ("a", "b"))
    with torch.no_grad():
        d.net.head[-1].weight.normal_(std=0.05)
    return d


def same(a, b):
    a, b = load_file(a / STATE), load_file(b / STATE)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stopped_and_resumed_is_the_same_student(toy, tmp_path):
    teacher = tiny(toy)
    teacher.save(tmp_path / "teacher")
    config = toy.config(steps=9, checkpoint_every=3)

    def states(out, resume=False):
        followed = follow_teacher(tmp_path / "teacher", teacher, out, 2, 50, guidance=2.0)
        return run_task(Distillation(new_student(teacher, 2, 2.0), "hash"), followed, config, out, resume)

    list(states(tmp_path / "whole"))
    list(islice(states(tmp_path / "cut"), 5))
    list(states(tmp_path / "cut", resume=True))
    assert same(tmp_path / "whole", tmp_path / "cut")
    # the student has learned something, and its teacher is as it was
    student = orn.load(tmp_path / "cut")
    assert student.distilled is not None and (student.distilled.steps, student.distilled.guidance) == (2, 2.0)
    assert any(not torch.equal(p, q) for p, q in zip(student.parameters(), teacher.parameters(), strict=True))
    assert teacher.distilled is None and copy.deepcopy(student).distilled == student.distilled


def test_another_teacher_is_refused(toy, tmp_path):
    teacher = tiny(toy)
    teacher.save(tmp_path / "teacher")
    followed = follow_teacher(tmp_path / "teacher", teacher, tmp_path / "run", 2, 20)
    config = toy.config(steps=4)
    list(run_task(Distillation(new_student(teacher, 2), "one"), followed, config, tmp_path / "run"))
    for task, words in (
        (Distillation(new_student(teacher, 2), "two"), "teacher = one, and two"),
        (Distillation(new_student(teacher, 2, 3.0), "one"), "distilled.guidance = 1.0, and 3.0"),
    ):
        with pytest.raises(UserError, match=words):
            run_task(task, followed, config, tmp_path / "run", resume=True).__next__()
    with pytest.raises(ValueError, match="new_student"):
        Distillation(teacher, "one")


def test_trajectories_are_followed_once_and_gone_on_with(toy, tmp_path, monkeypatch):
    teacher = tiny(toy)
    teacher.save(tmp_path / "teacher")
    asked: list[int] = []
    own = module.follow

    def counted(model, steps, count, guidance, seed, batch, first=0):
        asked.append(count - first)
        return own(model, steps, count, guidance, seed, batch, first)

    monkeypatch.setattr(module, "follow", counted)
    monkeypatch.setattr(module, "_BATCH", 16)

    def follow(**other):
        return follow_teacher(tmp_path / "teacher", teacher, tmp_path / "run", **({"steps": 3, "count": 40} | other))

    whole, labels = follow().batch(range(40))
    assert whole.shape == (40, 4, 1, 8, 8) and whole.isfinite().all() and labels is not None
    follow()
    assert asked == [16, 16, 8]
    folder = tmp_path / "run" / FOLDER
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"done": 32}))
    array = np.lib.format.open_memmap(folder / "trajectories.npy", "r+")
    array[32:] = 0.0  # what a kill left
    array.flush()
    again, _ = follow().batch(range(40))
    assert asked == [16, 16, 8, 8] and torch.equal(again, whole)
    # other settings, or another teacher, and they are followed anew
    follow(guidance=2.0)
    with torch.no_grad():
        teacher.net.head[-1].weight.mul_(1.1)
    teacher.save(tmp_path / "teacher")
    follow(guidance=2.0)
    assert asked[4:] == [16, 16, 8, 16, 16, 8]


def test_trajectories_that_end_nowhere(toy, tmp_path):
    teacher = tiny(toy)
    teacher.save(tmp_path / "teacher")
    with torch.no_grad():
        teacher.net.head[-1].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        follow_teacher(tmp_path / "teacher", teacher, tmp_path / "run", 2, 8)
