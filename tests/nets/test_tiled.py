"""Networks on larger samples than they were trained at: tiles, against the network on the whole."""

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.nets import Tiled
from ornstein.noise import AR1
from ornstein.video import sample_given, sample_long


class Pixelwise(nn.Module):
    """A network that sees one pixel over all frames at a time, and known frames; it writes down what sizes it met."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.config = {"conditioning": True}
        self.met: set[tuple[int, ...]] = set()

    def forward(
        self, x: Tensor, log_snr: Tensor, known: Tensor | None = None, known_mask: Tensor | None = None
    ) -> Tensor:
        self.met.add(tuple(x.shape[-2:]))
        out = self.weight * x.cumsum(2) + 0.1 * torch.tanh(log_snr).view(-1, 1, 1, 1, 1)
        if known is not None and known_mask is not None:
            out = out + (known * known_mask[:, None, :, None, None]).mean(2, keepdim=True)
        return out


def model(net: nn.Module) -> orn.Denoiser:
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), AR1(4, 0.7)), "v")


@pytest.mark.parametrize("size", [(6, 8), (7, 19), (16, 8)])
def test_what_looks_at_no_neighbours_is_the_same_in_tiles(size: tuple[int, int]) -> None:
    plain, shape = Pixelwise(), (2, 1, 4, *size)
    tiled = Tiled(plain, (6, 8), 3)
    assert model(tiled).conditions == model(plain).conditions == ("known", "known_mask")
    whole = orn.sample(model(plain), shape, steps=3)
    plain.met.clear()
    torch.testing.assert_close(orn.sample(model(tiled), shape, steps=3), whole, rtol=1e-5, atol=1e-5)
    assert plain.met == {(6, 8)}


def test_known_frames_and_long_clips_are_cut_with_the_sample() -> None:
    plain = Pixelwise()
    known = torch.randn(2, 1, 4, 9, 13, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, True, False, False])
    for draw in (
        lambda d: sample_given(d, known, mask, steps=3),
        lambda d: sample_long(d, (2, 1, 11, 9, 13), 4, 2, steps=3),
    ):
        torch.testing.assert_close(draw(model(Tiled(plain, (5, 6), 2))), draw(model(plain)), rtol=1e-5, atol=1e-5)


def test_tiles_leave_no_seam() -> None:
    """The outputs of tiles that disagree are blended: no step is larger than 1 over the overlap and one."""
    count = iter(range(100))
    net = nn.Module()
    net.forward = lambda x, log_snr: torch.full_like(x, float(next(count) % 2))
    out = Tiled(net, (8, 8), 3)(torch.zeros(1, 1, 8, 18), torch.zeros(1))
    assert float(out[..., 1:].sub(out[..., :-1]).abs().max()) <= 1 / 4 + 1e-6
    assert float(out.min()) == 0 and float(out.max()) == 1


@pytest.mark.parametrize("overlap", [-1, 6])
def test_wrong_overlaps(overlap: int) -> None:
    with pytest.raises(ValueError, match="share 0 to 5"):
        Tiled(Pixelwise(), (6, 8), overlap)
