"""Sampling of a model on a GPU: everything that a user gives may be on the CPU, and the host hardly ever waits."""

from functools import partial
from typing import Any

import pytest
import torch
from models import LABELS, clip_model, image_model
from pretend import PretendedGPU

import ornstein as orn
from ornstein import likelihood, video
from ornstein.nets import UNet, frames_known
from ornstein.solvers import SOLVERS, Counted
from ornstein.solvers.grids import GRIDS

SHAPE = (4, 2, 8, 8)
STEPS = 4


def same_as_on_the_cpu(gpu: PretendedGPU, denoiser: orn.Denoiser, run: Any) -> torch.Tensor:
    """The result of run(denoiser) on the device, once it is the CPU's and the counters are those of this run."""
    wanted = run(denoiser)
    denoiser.to("cuda")
    gpu.reset()
    result = run(denoiser)
    counted = gpu.syncs, gpu.copies, gpu.report()
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), wanted, rtol=1e-4, atol=1e-4)
    gpu.syncs_, gpu.copies_, gpu.report_ = counted  # pyright: ignore
    return result


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver(gpu: PretendedGPU, solver: str) -> None:
    same_as_on_the_cpu(gpu, image_model(), lambda d: orn.sample(d, SHAPE, solver, STEPS))
    if solver != "rk45":  # which chooses its steps by their errors
        assert gpu.syncs_ <= STEPS and gpu.copies_ == 0, gpu.report_  # pyright: ignore


def test_a_solver_that_chooses_its_steps_waits_once_for_each(gpu: PretendedGPU) -> None:
    d = Counted(image_model().to("cuda"))
    gpu.reset()
    orn.sample(d, SHAPE, "rk45", STEPS)
    assert gpu.syncs <= d.calls // 6 + 2, gpu.report()


@pytest.mark.parametrize("grid", [*GRIDS, [1.0, 0.7, 0.2, 0.0]])
def test_every_time_schedule(gpu: PretendedGPU, grid: Any) -> None:
    same_as_on_the_cpu(gpu, image_model(), lambda d: orn.sample(d, SHAPE, "ddim", STEPS, grid))


def test_time_steps_on_the_device(gpu: PretendedGPU) -> None:
    d = image_model().to("cuda")
    x = orn.sample(d, SHAPE, grid=torch.linspace(1, 0, STEPS + 1, device="cuda"))
    assert torch.equal(x.cpu(), orn.sample(d, SHAPE, grid=torch.linspace(1, 0, STEPS + 1)).cpu())


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (orn.schedules.LinearBeta(), "eps"),
        (orn.schedules.Discrete.linear(100), "x0"),
        (orn.schedules.Cosine(log_snr_min=None), "v"),
        (orn.schedules.VE(), "score"),
        (orn.schedules.Rectified(), "flow"),
        (orn.schedules.EDM(), "edm"),
    ],
)
def test_every_schedule_and_prediction(gpu: PretendedGPU, schedule: Any, prediction: str) -> None:
    same_as_on_the_cpu(gpu, image_model(schedule, prediction), lambda d: orn.sample(d, SHAPE, "flow-3m", STEPS))
    assert gpu.syncs_ <= STEPS and gpu.copies_ == 0, gpu.report_  # pyright: ignore


@pytest.mark.parametrize("labels", [LABELS, LABELS.tolist(), tuple(LABELS.tolist())])
@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"batch": 3}, {"batch": 1, "guidance": 0.5}])
def test_labels_on_the_cpu(gpu: PretendedGPU, labels: Any, settings: dict[str, Any]) -> None:
    same_as_on_the_cpu(
        gpu, image_model(), lambda d: orn.sample(d, SHAPE, "ddim", STEPS, cond={"label": labels}, **settings)
    )
    batches = 4 // settings.get("batch", 4) + 1
    assert gpu.syncs_ <= batches * STEPS and gpu.copies_ <= batches, gpu.report_  # pyright: ignore


def test_wrong_labels_are_refused_on_any_device(gpu: PretendedGPU) -> None:
    d = image_model().to("cuda")
    for label in (torch.tensor([0, 1, 3, 0]), [0, 1, -2, 0], torch.tensor([0, 1, 3, 0], device="cuda")):
        with pytest.raises(ValueError, match=r"label (3|-2) is out of range: 0..2"):
            orn.sample(d, SHAPE, "ddim", STEPS, cond={"label": label})


def test_guidance_within_an_interval(gpu: PretendedGPU) -> None:
    def run(d: orn.Denoiser) -> torch.Tensor:
        guided = orn.guidance.ClassifierFree(d, 2.0, (0.2, 0.8))
        return orn.sample(guided, SHAPE, "ddim", STEPS, cond={"label": LABELS})

    same_as_on_the_cpu(gpu, image_model(), run)


def test_start_on_the_cpu_and_inversion(gpu: PretendedGPU) -> None:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    same_as_on_the_cpu(gpu, image_model(), lambda d: orn.sample(d, SHAPE, "ddim", STEPS, start=start))
    same_as_on_the_cpu(gpu, image_model(), lambda d: orn.invert(d, start.clamp(-1, 1), STEPS, cond={"label": LABELS}))


@pytest.mark.parametrize("variance", ["lower", "upper", "learned"])
def test_reverse_variances(gpu: PretendedGPU, variance: str) -> None:
    model = image_model(learned_variance=True)
    same_as_on_the_cpu(gpu, model, lambda d: orn.sample(d, SHAPE, partial(SOLVERS["ddpm"], variance=variance), STEPS))


def test_fitted_reverse_variance(gpu: PretendedGPU) -> None:
    images = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def run(d: orn.Denoiser) -> torch.Tensor:
        table = likelihood.fit_variance(d, images, nodes=3, cond={"label": LABELS})
        return orn.sample(d, SHAPE, partial(SOLVERS["ddpm"], variance=table), STEPS)

    same_as_on_the_cpu(gpu, image_model(), run)


def test_half_precision(gpu: PretendedGPU) -> None:
    d = image_model().to("cuda")
    exact = orn.sample(d, SHAPE, "ddim", STEPS)
    for precision in ("auto", "bf16", torch.bfloat16):
        half = orn.sample(d, SHAPE, "ddim", STEPS, precision=precision)
        assert half.dtype == torch.float32
        assert 0 < float((half - exact).abs().max()) < 0.1


def test_conditions_of_a_network_of_the_user_s(gpu: PretendedGPU) -> None:
    """Its conditions arrive where its input is, as tensors."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor, log_snr: torch.Tensor, label=None, mask=None) -> torch.Tensor:
            shift = 0 if label is None else label.view(-1, 1, 1, 1)
            return self.scale * x * (1 if mask is None else mask) + shift

    d = orn.Denoiser(Net(), orn.Process(orn.schedules.Cosine()))
    mask = torch.ones(4, 1, 8, 8)
    same_as_on_the_cpu(
        gpu, d, lambda d: orn.sample(d, SHAPE, "ddim", STEPS, cond={"label": [0.1, 0, 1, 2], "mask": mask})
    )
    x = torch.ones(SHAPE, device="cuda")
    assert d(x, 0.5, label=[0, 1, 2, 3], mask=mask).x0.is_cuda
    assert d(x, torch.tensor([0.1, 0.2, 0.3, 1.0]), label=None).x0.is_cuda


NOISES = [
    orn.noise.AR1(4, 0.5),
    orn.noise.OU([0.0, 1.0, 2.0, 4.0], 1.0),
    orn.noise.Mixed(4, 0.5),
    orn.noise.Toeplitz([1.0, 0.5, 0.25, 0.1]),
    orn.noise.LowRank([0.5] * 4, torch.full((4, 1), 0.7)),
    orn.noise.Kronecker(orn.noise.AR1(4, 0.5), (orn.noise.AR1(8, 0.3), orn.noise.AR1(8, 0.2))),
]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_noise_over_frames(gpu: PretendedGPU, noise: orn.noise.Covariance) -> None:
    def run(d: orn.Denoiser) -> torch.Tensor:
        return orn.sample(d, (2, 2, 4, 8, 8), "ddpm", STEPS, cond={"label": [0, 2]})

    same_as_on_the_cpu(gpu, clip_model(noise), run)
    x = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for name in ("color", "whiten", "solve", "matvec", "mahalanobis"):
        operation = getattr(noise, name)
        torch.testing.assert_close(operation(x.to("cuda")).cpu(), operation(x), rtol=1e-4, atol=1e-4)
        gpu.reset()
        operation(x.to("cuda"))
        assert gpu.syncs == 0 and gpu.copies <= 1, f"{name}: {gpu.report()}"  # the copy is x itself


CLIPS = torch.rand(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("solver", ["flow-3m", "ddpm"])
@pytest.mark.parametrize("settings", [{}, {"guidance": 1.5, "batch": 1}])
@pytest.mark.parametrize("labels", [LABELS[:2], [0, 1]])
def test_known_frames_on_the_cpu(gpu: PretendedGPU, solver: str, settings: dict[str, Any], labels: Any) -> None:
    def run(d: orn.Denoiser) -> torch.Tensor:
        cond = {"label": labels}
        return video.sample_given(d, CLIPS, frames_known(4, 2), solver, STEPS, cond=cond, **settings)

    x = same_as_on_the_cpu(gpu, clip_model(), run)
    assert torch.equal(x[:, :, :2].cpu(), CLIPS[:, :, :2])


@pytest.mark.parametrize("solver", ["flow-3m", "ddpm"])
def test_long_clips(gpu: PretendedGPU, solver: str) -> None:
    def run(d: orn.Denoiser) -> torch.Tensor:
        return video.sample_long(d, (2, 2, 6, 8, 8), 4, 2, solver, STEPS, cond={"label": [0, 1]}, batch=1)

    same_as_on_the_cpu(gpu, clip_model(), run)


def test_labels_are_checked_once_a_tensor_while_sampling_and_never_while_training(gpu: PretendedGPU) -> None:
    net = UNet(1, 8, 3, width=16, multipliers=(1,), depths=(1,)).to("cuda").eval()
    x, log_snr, label = torch.zeros(4, 1, 8, 8, device="cuda"), torch.zeros(4, device="cuda"), LABELS.to("cuda")
    gpu.reset()
    for _ in range(3):
        net(x, log_snr, label)
    assert gpu.syncs == 1
    net(x, log_snr, label.clone())
    assert gpu.syncs == 2
    net.train()(x, log_snr, label.clone())
    net(x, log_snr, LABELS)  # of the CPU: read there
    assert gpu.syncs == 2
