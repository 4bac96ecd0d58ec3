"""Training on a GPU: one read a step, the same losses as on a CPU, exact resumption, half precision, loss scaling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import image_model
from pretend import PretendedGPU
from safetensors.torch import load_file

import ornstein as orn
from ornstein.autoencoders import AUTOENCODERS, AutoencoderLoss
from ornstein.errors import UserError
from ornstein.training import TrainConfig, run_task, train
from ornstein.training.autoencoder import Autoencoding
from ornstein.training.precision import LossScale, addressed_dropout, float32_products
from ornstein.training.state import STATE


class Images:
    """A data set on the CPU, as any."""

    def __init__(self, labels: bool = True, channels: int = 2) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.rand(32, channels, 8, 8, generator=draw) * 2 - 1
        self.labels = torch.arange(32) % 3 if labels else None

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = torch.as_tensor(indices, device="cpu")
        return self.x[rows], None if self.labels is None else self.labels[rows]


def config(**settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"steps": 4, "batch": 8, "warmup": 1, "precision": "float32", "checkpoint_every": 100}
    return TrainConfig(**(defaults | settings))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("objective", [None, "hybrid", "edm"])
def test_a_step_reads_once(gpu: PretendedGPU, tmp_path: Path, optimizer: str, objective: str | None) -> None:
    model = image_model(learned_variance=objective == "hybrid", dropout=0.3).to("cuda")
    states = train(model, Images(), config(optimizer=optimizer, objective=objective), tmp_path)
    next(states)
    for _ in range(2):
        gpu.reset()
        state = next(states)
        assert gpu.syncs == 1, gpu.report()
    assert next(states).step == 4 and next(states, None) is None
    assert all(p.is_cuda for p in state.model.parameters())
    assert (tmp_path / "model.safetensors").is_file()


def test_a_resumed_training_ends_in_the_same_bits(gpu: PretendedGPU, tmp_path: Path) -> None:
    def run(name: str, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        model = image_model(dropout=0.3).to("cuda")
        for _ in train(model, Images(), config(steps=steps, precision="fp16"), tmp_path / name, resume):
            pass
        return load_file(tmp_path / name / STATE)

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_labels_without_a_class_are_refused(gpu: PretendedGPU, tmp_path: Path) -> None:
    images = Images()
    assert images.labels is not None
    images.labels = images.labels + 1
    with pytest.raises(UserError, match="label 3, but the network has 3 classes"):
        list(train(image_model().to("cuda"), images, config(), tmp_path))


def test_an_overflow_in_fp16_halves_the_scale_and_moves_no_weight(gpu: PretendedGPU, tmp_path: Path) -> None:
    class Sharp(torch.nn.Module):
        """Its gradient of 2^20 overflows in fp16 by a scale above 2^-4."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(16, 16))

        def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
            return x + Spike.apply(self.weight).sum()

    class Spike(torch.autograd.Function):
        count = 0

        @staticmethod
        def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
            return 0 * weight

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # pyright: ignore
            Spike.count += 1
            return gradient * (float("inf") if Spike.count == 2 else 1.0)

    model = orn.Denoiser(Sharp(), orn.Process(orn.schedules.Cosine()), data=orn.Data((2, 8, 8))).to("cuda")
    # averages of width 0 are the weights themselves
    states = train(model, Images(labels=False), config(precision="fp16", ema=0.0, weight_decay=0.1), tmp_path)
    weights = [next(states).model.net.weight.detach().cpu().clone() for _ in range(4)]  # pyright: ignore
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2]) and not torch.equal(weights[2], weights[3])


def test_the_loss_scale_by_itself() -> None:
    scale, plain = LossScale(torch.float16), LossScale(torch.bfloat16)
    assert not plain.overflowed() and plain.value == 1 and plain.to_state() is None
    start = scale.value
    assert scale.overflowed() and scale.value == start / 2
    for _ in range(2000):
        scale.stepped()
    assert scale.value == start
    again = LossScale(torch.float16)
    scale.overflowed()
    again.load_state(scale.to_state())
    assert (again.value, again.since) == (scale.value, scale.since)
    while scale.overflowed():
        pass
    assert scale.value == 1  # a lower one would not help: the gradient itself is not finite


def test_tf32_is_chosen_and_put_back() -> None:
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for exact in (True, False):
        with float32_products(torch.device("cuda"), exact):
            assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (not exact, not exact)
        assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_dropout_is_addressed_and_the_global_generators_are_left_alone(gpu: PretendedGPU) -> None:
    states = torch.get_rng_state(), torch.cuda.default_generators[0].get_state()
    drawn = []
    for seed in (1, 2, 1):
        with addressed_dropout(torch.device("cuda", 0), seed):
            drawn.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.default_generators[0].get_state(), states[1])


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_autoencoders_train_with_one_read_a_step(gpu: PretendedGPU, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1))
    loss = AutoencoderLoss(model, free_bits=0.1, adversarial_weight=0.1, adversarial_start=0.0).to("cuda")
    states = run_task(Autoencoding(loss), Images(labels=False, channels=1), config(), tmp_path)
    next(states)
    gpu.reset()
    next(states)
    assert gpu.syncs == 1, gpu.report()
