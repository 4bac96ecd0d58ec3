import pytest
import torch

from ornstein.errors import UserError
from ornstein.faces.identity import Distillation, IdentityNet, agreement, augmented, fingerprint, likeness
from ornstein.faces.photos import Photos
from ornstein.training import TrainConfig, run_task


def blobs(n: int = 64) -> Photos:
    """Photos of "people" who are a colour: the embedding is that colour times 5, plus 3."""
    draw = torch.Generator().manual_seed(0)
    person = torch.arange(n) // 2
    colour = torch.rand(n // 2, 3, generator=draw)[person]
    images = (colour[:, :, None, None] * 200 + 50 * torch.rand(n, 3, 64, 64, generator=draw)).to(torch.uint8)
    masks = torch.full((n, 1, 64, 64), 255, dtype=torch.uint8)
    return Photos(images, masks, torch.zeros(n, 5, 2), person, 5 * colour + 3)


def tiny_net() -> IdentityNet:
    torch.manual_seed(0)
    return IdentityNet(3, width=8, multipliers=(1, 2, 2))


def test_it_learns_its_teachers_embedding(tmp_path):
    photos = blobs()
    task = Distillation(tiny_net(), photos, strength=0.1)
    config = TrainConfig(steps=40, batch=16, learning_rate=5e-3, warmup=5, precision="float32")
    losses = [state.loss for state in run_task(task, photos, config, tmp_path)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    found = agreement(task.model, photos, among=32)
    assert found["likeness"] > 0.8 and found["verified"] > 0.8 and found["top1"] > 0.3
    again = IdentityNet.load(tmp_path)
    images = photos.batch([0, 1])[0]
    torch.testing.assert_close(again(images), task.model.embed(images))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert fingerprint(again) == fingerprint(task.model) != fingerprint(tiny_net())


def test_agreement_of_a_perfect_and_of_a_clueless_pupil():
    photos, net = blobs(), tiny_net()
    net.fit_scale(photos.embeddings)
    truth = net.normalised(photos.embeddings)
    net.embed = lambda images, landmarks: truth  # type: ignore[method-assign]
    assert agreement(net, photos) == pytest.approx({"likeness": 1, "top1": 1, "verified": 1})
    net.embed = lambda images, landmarks: torch.ones(len(images), 3)  # type: ignore[method-assign]
    assert agreement(net, photos)["top1"] == pytest.approx(1 / 32) and agreement(net, photos)["verified"] == 0.5


def test_normalised_embeddings_have_mean_0_and_mean_square_1():
    net, e = tiny_net(), torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3]) + 7
    net.fit_scale(e)
    z = net.normalised(e)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert float(z.square().mean()) == pytest.approx(1)
    # distances keep their order: one scale for all entries
    torch.testing.assert_close((z[:250] - z[250:]) * net.scale, e[:250] - e[250:], atol=1e-4, rtol=1e-4)


def test_augmentation_by_nothing_is_nothing_and_gradients_pass():
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(augmented(images, torch.Generator(), 0.0, mirror=False), images, atol=1e-5, rtol=1e-5)
    mirrored = augmented(images, torch.Generator().manual_seed(1), 0.0)
    for before, after in zip(images, mirrored, strict=True):
        assert min(float((after - before).abs().max()), float((after - before.flip(2)).abs().max())) < 1e-4
    images.requires_grad_()
    augmented(images, torch.Generator().manual_seed(2)).sum().backward()
    assert images.grad is not None and bool(images.grad.isfinite().all()) and bool(images.grad.any())


def test_likeness_and_other_sizes():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(likeness(a, torch.tensor([[2.0, 0.0], [-1.0, 1.0]])), torch.tensor([1.0, 0.0]))
    assert tiny_net().embed(torch.zeros(2, 3, 128, 128)).shape == (2, 3)


def test_a_folder_without_one_is_named(tmp_path):
    with pytest.raises(UserError, match="no file"):
        IdentityNet.load(tmp_path)
    tiny_net().save(tmp_path)
    (tmp_path / "identity.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="is not a recogniser of faces"):
        IdentityNet.load(tmp_path)
