"""What all networks of images and clips share: any height and width, any channels, and text."""

import math

import pytest
import torch
from torch import nn

from ornstein import Denoiser, Process
from ornstein.nets import DiT, UNet, VideoUNet
from ornstein.schedules import Cosine


def filled(net: nn.Module) -> nn.Module:
    """The network with no parameter at zero: zero layers would hide what reaches the output."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return net.eval()


def unet(size=16, channels=2, **settings):
    return filled(UNet(channels, size, width=16, multipliers=(1, 2), depths=(1, 1), attention=(8,), **settings))


def dit(size=16, channels=2, **settings):
    return filled(DiT(channels, size, width=16, depth=2, heads=2, patch=2, **settings))


def video(size=16, channels=2, **settings):
    image = {"width": 16, "multipliers": (1, 2), "depths": (1, 1), "attention": (8,)}
    return filled(VideoUNet(channels, size, 3, **image, **settings))


def clip_dit(size=16, channels=2, **settings):
    return dit(size, channels, frames=3, **settings)


def full_clip_dit(size=16, channels=2, **settings):
    return clip_dit(size, channels, time="full", **settings)


NETS = {
    "unet": unet,
    "dit": dit,
    "video": video,
    "clip-dit": clip_dit,
    "clip-dit-full": lambda **s: clip_dit(time="full", **s),
}


def batch(name: str, channels: int, height: int, width: int) -> torch.Tensor:
    frames = () if name in ("unet", "dit") else (3,)
    return torch.randn(2, channels, *frames, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(16, 16), (24, 10), (7, 13), (1, 3)])
def test_any_height_and_width(name, size):
    net, x, log_snr = NETS[name](size=size), batch(name, 2, *size), torch.tensor([0.3, -1.0])
    assert net(x, log_snr).shape == x.shape
    other = batch(name, 2, size[0] + 5, size[1] + 2)
    out = net(other, log_snr)
    assert out.shape == other.shape and bool(out.isfinite().all())


@pytest.mark.parametrize("name", NETS)
def test_padding_repeats_the_last_row_and_column_and_is_cut_off(name):
    net, log_snr = NETS[name](), torch.zeros(2)
    x = batch(name, 2, 15, 13)
    whole = nn.functional.pad(x.flatten(0, -3)[None], (0, 1, 0, 1), mode="replicate")[0].unflatten(0, x.shape[:-2])
    torch.testing.assert_close(net(x, log_snr), net(whole, log_snr)[..., :15, :13])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels(name, channels):
    net, x = NETS[name](channels=channels, learned_variance=True), batch(name, channels, 16, 16)
    assert net(x, torch.zeros(2)).shape == (2, 2 * channels, *x.shape[2:])


@pytest.mark.parametrize("name", NETS)
def test_an_untrained_network_returns_zero(name):
    torch.manual_seed(0)
    plain = {
        "unet": UNet(2, (16, 8), text_width=5),
        "dit": DiT(2, (16, 8), text_width=5),
        "video": VideoUNet(2, (16, 8), 3, width=16, text_width=5),
        "clip-dit": DiT(2, (16, 8), frames=3, text_width=5),
        "clip-dit-full": DiT(2, (16, 8), frames=3, time="full", text_width=5),
    }[name]
    out = plain(batch(name, 2, 16, 8), torch.zeros(2), text=torch.randn(2, 4, 5))
    assert not out.any()


@pytest.mark.parametrize("name", NETS)
def test_text_conditions_and_what_is_masked_has_no_influence(name):
    net, x, log_snr = NETS[name](text_width=6), batch(name, 2, 16, 16), torch.zeros(2)
    text = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])
    out = net(x, log_snr, text=text, text_mask=mask)
    hidden = torch.where(mask[..., None], text, torch.tensor([math.nan]))
    assert torch.equal(net(x, log_snr, text=hidden, text_mask=mask), out)
    shorter = net(x[:1], log_snr[:1], text=text[:1, :2])
    torch.testing.assert_close(shorter, out[:1], rtol=1e-4, atol=1e-5)
    nothing = net(x, log_snr)
    assert float((out - nothing).abs().max()) > 1e-3
    none = net(x, log_snr, text=hidden, text_mask=torch.zeros_like(mask))
    torch.testing.assert_close(none, nothing, rtol=1e-4, atol=1e-5)
    swapped = net(x, log_snr, text=text.flip(1), text_mask=mask.flip(1))
    torch.testing.assert_close(swapped, out, rtol=1e-4, atol=1e-5)  # order is the encoder's to say


@pytest.mark.parametrize("name", NETS)
def test_text_that_does_not_fit_is_refused(name):
    net, x, log_snr = NETS[name](text_width=6), batch(name, 2, 16, 16), torch.zeros(2)
    text = torch.zeros(2, 4, 6)
    for wrong in (torch.zeros(2, 4, 5), torch.zeros(1, 4, 6), torch.zeros(2, 6)):
        with pytest.raises(ValueError, match=r"it must be \(2, L, 6\)"):
            net(x, log_snr, text=wrong)
    for mask in (torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4)):
        with pytest.raises(ValueError, match=r"text_mask is .* must be bool \(2, 4\)"):
            net(x, log_snr, text=text, text_mask=mask)
    with pytest.raises(ValueError, match="without text"):
        net(x, log_snr, text_mask=torch.ones(2, 4, dtype=torch.bool))
    plain = NETS[name]()
    with pytest.raises(ValueError, match="takes no text"):
        plain(x, log_snr, text=text)
    process = Process(Cosine())
    assert {"text", "text_mask"} <= set(Denoiser(net, process, "v").conditions)
    assert not {"text", "text_mask"} & set(Denoiser(plain, process, "v").conditions)


@pytest.mark.parametrize("name", NETS)
def test_the_config_rebuilds_it(name):
    net = NETS[name](size=(16, 8), classes=3, text_width=6)
    again = type(net)(**net.config)
    again.load_state_dict(net.state_dict())
    x, label = batch(name, 2, 16, 8), torch.tensor([2, -1])
    text = torch.randn(2, 2, 6)
    first, second = (each(x, torch.zeros(2), label, text=text) for each in (net, again.eval()))
    assert torch.equal(first, second) and again.config == net.config
