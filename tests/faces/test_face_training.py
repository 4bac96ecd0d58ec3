import pytest
import torch

import ornstein as orn
from ornstein.errors import UserError
from ornstein.faces.conditions import CHANNELS
from ornstein.faces.identity import IdentityNet
from ornstein.faces.photos import Photos
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.objective import FaceSettings, FaceTask, face_denoiser
from ornstein.nets import FaceUNet
from ornstein.training import TrainConfig, run_task


def coloured(n: int = 32, size: int = 16) -> Photos:
    """Grey pictures with a square "face" in the colour that the person is; photo 2k and 2k + 1 are of person k."""
    person = torch.arange(n) // 2
    colour = torch.rand(n // 2, 3, generator=torch.Generator().manual_seed(0))[person]
    masks = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    masks[:, :, 4:12, 4:12] = 255
    images = torch.where(masks > 0, (255 * colour).to(torch.uint8)[:, :, None, None], 128).to(torch.uint8)
    return Photos(images, masks, torch.full((n, 5, 2), 8.0), person, 4 * colour - 2)


def parts(settings: FaceSettings, photos: Photos | None = None) -> FaceTask:
    torch.manual_seed(0)
    net = FaceUNet(3, 16, CHANNELS, 3, width=16, multipliers=(1, 2), depths=(1, 1), attention=(4,), patch=1)
    denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=orn.Data((3, 16, 16)))
    return FaceTask(denoiser, IdentityNet(3, 8, (1, 2, 2)), photos or coloured(), settings)


def config(steps: int, **settings) -> TrainConfig:
    return TrainConfig(**{"steps": steps, "batch": 8, "warmup": 3, "precision": "float32"} | settings)


def losses_of(task: FaceTask, out, steps: int, **settings) -> list[float]:
    return [state.loss for state in run_task(task, task.photos, config(steps, **settings), out)]


def test_it_learns_and_is_saved_with_its_recogniser(tmp_path):
    task = parts(FaceSettings(begins=0.95))
    losses = losses_of(task, tmp_path, 24, learning_rate=5e-3)
    assert sum(losses[12:22]) < 0.9 * sum(losses[:10])
    model = FaceModel.load(tmp_path)
    p = task.photos
    out = swap_crops(model, p.batch([0])[0], p.masks[:1] / 255, p.landmarks[:1], p.faces(torch.tensor([4])), steps=3)
    assert bool(out.isfinite().all()) and model.size == 16


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    settings = FaceSettings(begins=0.0, swaps=0.5)
    whole, first, second = (parts(settings) for _ in range(3))
    losses_of(whole, tmp_path / "whole", 4)
    for state in run_task(first, first.photos, config(4, checkpoint_every=2), tmp_path / "cut"):
        if state.step == 2:
            break
    for _ in run_task(second, second.photos, config(4, checkpoint_every=2), tmp_path / "cut", resume=True):
        pass
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def loss_and_figures(task: FaceTask, progress: float, seed: int = 0):
    x0, rows = task.photos.batch(torch.arange(12))
    return task.loss(x0, rows, torch.Generator().manual_seed(seed), progress)


def test_the_recogniser_speaks_only_from_its_time_on_and_is_never_trained():
    task = parts(FaceSettings(begins=0.5, identity=0.1))
    before = [p.clone() for p in task.recogniser.parameters()]
    early, figures = loss_and_figures(task, 0.49)
    assert torch.equal(early, figures["error"]) and not figures["unlike"].any()
    late, figures = loss_and_figures(task, 0.5)
    assert bool(figures["unlike"] > 0) and bool(figures["swap_unlike"] > 0)
    assert bool(late > figures["error"])
    late.backward()
    assert all(p.grad is None for p in task.recogniser.parameters())
    for a, b in zip(before, task.recogniser.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(p.grad is not None and bool(p.grad.any()) for p in task.model.parameters())


def test_the_terms_have_the_weights_they_are_given():
    nothing = FaceSettings(begins=0.0, identity=0.0, swap=0.0, colour=0.0)
    plain, _ = loss_and_figures(parts(nothing), 1.0)
    for name, figure in (("identity", "unlike"), ("swap", "swap_unlike")):
        one, figures = loss_and_figures(parts(FaceSettings(**vars(nothing) | {name: 2.0})), 1.0)
        torch.testing.assert_close(one - plain, 2 * figures[figure], rtol=1e-4, atol=1e-6)


def test_pixels_outside_the_mask_weigh_as_little_as_asked():
    """An untrained net answers 0, so the error is that of the target: the mean square of v, weighted."""
    photos = coloured()
    photos.masks.zero_()
    everywhere, _ = loss_and_figures(parts(FaceSettings(outside=0.2), photos), 0.0)
    even, _ = loss_and_figures(parts(FaceSettings(outside=1.0), photos), 0.0)
    assert everywhere.item() == pytest.approx(even.item())  # the weights are relative
    some, _ = loss_and_figures(parts(FaceSettings(outside=0.0)), 0.0)
    assert some.item() != pytest.approx(even.item(), rel=1e-3)


def test_dropping_every_identity_makes_it_deaf_to_it():
    photos = coloured()
    settings = FaceSettings(dropout=1.0)
    a, _ = loss_and_figures(parts(settings, photos), 0.0)
    task = parts(settings, photos.known_as(photos.embeddings * 3))
    for parameter in task.model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    once, _ = loss_and_figures(task, 0.0)
    task.photos = photos
    again, _ = loss_and_figures(task, 0.0)
    assert once.item() == again.item()
    assert a.item() > 0


def test_presets_and_wrong_settings():
    d = face_denoiser(64, 10, "xs")
    assert d.shape == (3, 64, 64) and d.prediction == "v"
    with pytest.raises(UserError, match="swaps must lie between 0 and 1"):
        FaceSettings(swaps=1.5)
    with pytest.raises(UserError, match="colour must not be negative"):
        FaceSettings(colour=-1.0)
