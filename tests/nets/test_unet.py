import json
import math

import pytest
import torch

from ornstein import Denoiser, Process, load
from ornstein.nets import UNet
from ornstein.nets.sizes import reference
from ornstein.schedules import Cosine


def make(**settings) -> UNet:
    torch.manual_seed(0)
    net = UNet(**{"channels": 2, "size": 8, "width": 16, "multipliers": (1, 2), "depths": (1, 1)} | settings)
    with torch.no_grad():  # zero-initialised layers would hide what reaches the output
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net


@pytest.mark.parametrize("size", [8, 12, 28, 32, 48, 27])
@pytest.mark.parametrize("name", ["xs", "m"])
def test_presets_take_any_size_and_start_at_zero(name, size):
    net = UNet.preset(name, channels=3, size=size, classes=4)
    x = torch.randn(2, 3, size, size)
    out = net(x, torch.tensor([0.0, 1.0]), torch.tensor([3, -1]))
    assert torch.equal(out, torch.zeros_like(x))
    assert size <= 8 or size % 2 or size >> (len(net.config["multipliers"]) - 1) <= 8


@pytest.mark.parametrize("size", [(64, 96), (40, 24), (256, 384), (31, 31)])
def test_presets_of_rectangles_attend_where_squares_of_their_area_do(size):
    net = UNet.preset("xs", channels=1, size=size)
    side = reference(size)
    like = UNet.preset("xs", channels=1, size=side)
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in like.named_parameters()]
    assert 0.9 < side**2 / (size[0] * size[1]) < 1.1
    again = UNet(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert again(torch.randn(1, 1, *size), torch.zeros(1)).shape == (1, 1, *size)


def test_presets_grow():
    def count(name):
        return sum(p.numel() for p in UNet.preset(name, channels=3, size=32, classes=10).parameters())

    xs, s, m, l = map(count, ("xs", "s", "m", "l"))
    assert xs < s < m < l
    assert 3.5e6 < m < 4.5e6
    with pytest.raises(ValueError, match="'xxl': choose one of xs, s, m, l"):
        UNet.preset("xxl", channels=3, size=32)


@pytest.mark.parametrize("learned", [False, True])
def test_patches_are_the_net_on_images_of_patches(learned):
    whole = make(size=16, patch=2, attention=(4,), learned_variance=learned)
    plain = make(channels=8, size=8, attention=(4,), learned_variance=learned)
    plain.load_state_dict(whole.state_dict())
    x, log_snr = torch.randn(2, 2, 16, 16), torch.randn(2)
    # channel 4 c + 2 i + j of a patch is its pixel (i, j) of channel c
    parts = [x[:, c, i::2, j::2] for c in range(2) for i in range(2) for j in range(2)]
    out, inner = whole(x, log_snr), plain(torch.stack(parts, 1), log_snr)
    assert out.shape == (2, 4 if learned else 2, 16, 16)
    for k in range(inner.shape[1]):
        torch.testing.assert_close(out[:, k // 4, k % 4 // 2 :: 2, k % 2 :: 2], inner[:, k])
    assert inner.std() > 0.01


def test_presets_take_patches_of_images_from_64_pixels_on():
    patches = {size: UNet.preset("xs", channels=3, size=size).config["patch"] for size in (8, 32, 64, 66, 128, 132)}
    assert patches == {8: 1, 32: 1, 64: 2, 66: 1, 128: 4, 132: 2}
    assert UNet.preset("xs", channels=3, size=64, patch=1).config["patch"] == 1


def test_config_rebuilds_the_net():
    net = make(classes=3, attention=(4,), dropout=0.1)
    again = UNet(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    x, log_snr, label = torch.randn(3, 2, 8, 8), torch.randn(3), torch.tensor([0, 1, -1])
    assert torch.equal(net.eval()(x, log_snr, label), again.eval()(x, log_snr, label))
    assert again.config == net.config


def test_infinite_log_snr_is_the_end_of_the_range():
    net = make()
    x = torch.randn(4, 2, 8, 8)
    out = net(x[:1].expand(4, -1, -1, -1), torch.tensor([math.inf, 20.0, -math.inf, -20.0]))
    torch.testing.assert_close(out[0], out[1])
    torch.testing.assert_close(out[2], out[3])
    assert out.isfinite().all()
    assert (out[0] - out[2]).abs().max() > 1e-3


def test_label_conditions_and_minus_one_is_none():
    net = make(classes=3)
    x, log_snr = torch.randn(1, 2, 8, 8).expand(4, -1, -1, -1), torch.zeros(4)
    out = net(x, log_snr, torch.tensor([-1, 0, 1, 2]))
    distances = torch.cdist(out.flatten(1), out.flatten(1)) + torch.eye(4)
    assert distances.min() > 1e-3
    torch.testing.assert_close(net(x, log_snr)[0], out[0])


@pytest.mark.parametrize("attention", [(), (4,), (8, 4)])
def test_samples_do_not_mix_and_every_pixel_sees_every_other(attention):
    net = make(attention=attention)
    x, log_snr = torch.randn(3, 2, 8, 8), torch.zeros(3)
    torch.testing.assert_close(net(x, log_snr)[1:], net(x[1:], log_snr[1:]))
    x = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, log_snr[:1])[0, 0, 0, 0], x)
    assert (gradient[0].abs() > 0).all()


def test_attention_is_softmax_attention():
    from ornstein.nets.blocks import Attention

    torch.manual_seed(0)
    layer = Attention(128)  # 2 heads of 64
    torch.nn.init.normal_(layer.out.weight, std=0.1)
    x = torch.randn(2, 128, 3, 3)
    tokens = layer.norm(x).permute(0, 2, 3, 1).reshape(2, 9, 128)
    q, k, v = layer.qkv(tokens).split(128, dim=-1)
    heads = []
    for h in (slice(0, 64), slice(64, 128)):
        weights = torch.softmax(torch.einsum("bic,bjc->bij", q[..., h], k[..., h]) / 8.0, dim=-1)
        heads.append(weights @ v[..., h])
    expected = x + layer.out(torch.cat(heads, -1)).reshape(2, 3, 3, 128).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(x), expected)


def test_dtype_follows_x_and_bf16_autocast_is_close():
    net = make(classes=2)
    x, log_snr, label = torch.randn(4, 2, 8, 8), torch.randn(4), torch.tensor([0, 1, -1, 0])
    out = net(x, log_snr, label)
    assert net(x.double(), log_snr.double(), label).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, log_snr, label)
    assert half.dtype == torch.float32
    assert (half - out).norm() < 0.03 * out.norm()


def test_dropout_acts_in_training_only():
    net = make(dropout=0.5)
    x, log_snr = torch.randn(1, 2, 8, 8), torch.zeros(1)
    assert not torch.equal(net(x, log_snr), net(x, log_snr))
    net.eval()
    assert torch.equal(net(x, log_snr), net(x, log_snr))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (8, 8, 8)}, r"a number of pixels or \(H, W\)"),
        ({"text_width": -1}, "text_width >= 0"),
        ({"depths": (1, 1, 1)}, "depths has 3 entries and multipliers 2"),
        ({"patch": 0}, "must be positive"),
        ({"channels": 0}, "must be positive"),
        ({"multipliers": (), "depths": ()}, "must be positive"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_bad_calls():
    net, plain = make(classes=3), make()
    x, log_snr = torch.randn(2, 2, 8, 8), torch.zeros(2)
    for label, message in [
        (torch.tensor([0, 3]), "label 3 is out of range: 0..2"),
        (torch.tensor([-2, 0]), "label -2 is out of range"),
        (torch.tensor([0]), r"must be int64 \(2,\)"),
        (torch.tensor([0.0, 1.0]), "must be int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            net(x, log_snr, label)
    with pytest.raises(ValueError, match="this net is unconditional"):
        plain(x, log_snr, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"takes \(B, 2, H, W\)"):
        net(torch.randn(2, 3, 8, 8), log_snr)
    with pytest.raises(ValueError, match="one per sample"):
        net(x, torch.zeros(1))


def test_a_learned_variance_doubles_the_output_and_is_kept_with_the_model(tmp_path):
    net = make(learned_variance=True)
    x, log_snr = torch.randn(3, 2, 8, 8), torch.randn(3)
    assert net(x, log_snr).shape == (3, 4, 8, 8)
    d = Denoiser(net, Process(Cosine()), "v").eval()
    d.save(tmp_path)
    again = load(tmp_path)
    one, other = (m(x, 0.5).log_variance(0.4) for m in (d, again))
    assert torch.equal(one, other)
    lower, upper = (
        2 * step.std.log() for step in (d.process.posterior(x, x, 0.4, 0.5), d.process.transition(x, 0.4, 0.5))
    )
    place = (one - lower) / (upper - lower)  # what the second half of the output says, 2v - 1
    expected = (net(x, d.process.schedule.log_snr(torch.tensor(0.5).double()).float().expand(3))[:, 2:] + 1) / 2
    torch.testing.assert_close(place, expected, rtol=1e-4, atol=1e-4)
    assert place.std() > 1e-3
    assert UNet.preset("xs", channels=1, size=8, learned_variance=True)(x[:, :1], log_snr).shape == (3, 2, 8, 8)
