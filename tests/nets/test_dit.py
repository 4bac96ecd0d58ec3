"""The diffusion transformer: attention, positions, modulation, clips."""

import pytest
import torch
from torch.nn import functional as F

from ornstein.nets import DiT
from ornstein.nets.dit import DIT_PRESETS, DiTBlock, Rotation


def make(**settings) -> DiT:
    torch.manual_seed(0)
    net = DiT(**{"channels": 2, "size": 8, "width": 16, "depth": 2, "heads": 2, "patch": 2} | settings)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net.eval()


def test_a_block_is_attention_and_an_mlp_each_scaled_shifted_and_gated():
    torch.manual_seed(0)
    block = DiTBlock(8, 2)
    torch.nn.init.normal_(block.modulation.weight)
    torch.nn.init.normal_(block.temperature)
    x, embedding = torch.randn(2, 5, 8), torch.randn(2, 8)
    angle = torch.randn(5, 2)
    out = block(x, embedding, Rotation(angle.cos(), angle.sin()))

    def modulated(h, scale, shift):
        return F.layer_norm(h, (8,)) * (1 + scale[:, None]) + shift[:, None]

    parts = block.modulation(embedding).split(8, dim=1)
    q, k, v = block.qkv(modulated(x, *parts[:2])).split(8, dim=-1)
    heads = []
    for i in range(2):
        one = slice(4 * i, 4 * i + 4)
        turned = []
        for which, part in enumerate((q[..., one], k[..., one])):
            part = part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() * block.temperature[which, i]
            pairs = torch.complex(part[..., :2], part[..., 2:]) * torch.polar(torch.ones_like(angle), angle)
            turned.append(torch.cat([pairs.real, pairs.imag], -1))
        weights = torch.softmax(torch.einsum("bid,bjd->bij", *turned) / 2.0, dim=-1)  # sqrt of 4 features
        heads.append(weights @ v[..., one])
    expected = x + parts[2][:, None] * block.out(torch.cat(heads, -1))
    hidden = F.gelu(block.up(modulated(expected, *parts[3:5])), approximate="tanh")
    expected = expected + parts[5][:, None] * block.down(hidden)
    torch.testing.assert_close(out, expected)


def test_only_distances_of_positions_matter():
    # The same picture elsewhere among zeros gives the same output there: tokens are turned by their place.
    net = make(registers=0)
    rotation = net._rotation((1, 6, 7), (1, 2), 0, torch.zeros(1))
    draw = torch.Generator().manual_seed(1)
    q, k = torch.randn(8, generator=draw), torch.randn(8, generator=draw)

    def score(a, b):
        turned = Rotation(rotation.cosine[[a, b]], rotation.sine[[a, b]]).turn(torch.stack([q, k]))
        return float(turned[0] @ turned[1])

    place = lambda row, column: 7 * row + column  # noqa: E731
    assert score(place(0, 1), place(2, 2)) == pytest.approx(score(place(3, 4), place(5, 5)), rel=1e-4)
    assert abs(score(place(0, 1), place(2, 2)) - score(place(0, 1), place(2, 3))) > 1e-4
    assert abs(score(place(0, 1), place(2, 1)) - score(place(0, 1), place(3, 1))) > 1e-4


def test_an_untrained_block_is_the_identity():
    x, embedding = torch.randn(2, 5, 8), torch.randn(2, 8)
    rotation = Rotation(torch.ones(5, 2), torch.zeros(5, 2))
    assert torch.equal(DiTBlock(8, 2)(x, embedding, rotation), x)


@pytest.mark.parametrize("time", ["full", "factorised"])
def test_frames_and_samples(time):
    net = make(frames=4, time=time)
    x, log_snr = torch.randn(3, 2, 4, 8, 8), torch.zeros(3)
    out = net(x, log_snr)
    torch.testing.assert_close(out[1:], net(x[1:], log_snr[1:]))  # samples do not mix
    x = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, log_snr[:1])[0, 0, 0, 0, 0], x)
    assert bool((gradient.abs().amax((0, 1)) > 0).all())  # every pixel of every frame is seen
    assert net(x[:, :, :2], log_snr[:1]).shape == (1, 2, 2, 8, 8)  # a shorter clip
    with pytest.raises(ValueError, match="5 frames, but this net was made for up to 4"):
        net(torch.zeros(1, 2, 5, 8, 8), torch.zeros(1))


@pytest.mark.parametrize("time", ["full", "factorised"])
def test_known_frames_are_read_and_unknown_ones_are_not(time):
    net = make(frames=4, time=time, conditioning=True)
    x, known, log_snr = torch.randn(2, 2, 4, 8, 8), torch.randn(2, 2, 4, 8, 8), torch.zeros(2)
    mask = torch.tensor([[True, False, False, False], [False, True, True, False]])
    out = net(x, log_snr, known=known, known_mask=mask)
    unread = torch.where(mask[:, None, :, None, None], known, torch.tensor(float("nan")))
    assert torch.equal(net(x, log_snr, known=unread, known_mask=mask), out)
    assert float((out - net(x, log_snr)).abs().max()) > 1e-3
    nothing = net(x, log_snr, known=known, known_mask=torch.zeros_like(mask))
    torch.testing.assert_close(nothing, net(x, log_snr))


def test_presets():
    sizes = [sum(p.numel() for p in DiT.preset(name, channels=3, size=32).parameters()) for name in DIT_PRESETS]
    assert sizes == sorted(sizes)
    patches = {size: DiT.preset("xs", channels=1, size=size).patch for size in (8, 16, 28, 32, 64, 96)}
    assert patches == {8: 1, 16: 1, 28: 2, 32: 2, 64: 4, 96: 8}
    with pytest.raises(ValueError, match="no preset 'xxl': choose one of xs, s, m, l"):
        DiT.preset("xxl", channels=1, size=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "3 heads do not divide the width 16"),
        ({"depth": 0}, "must be positive"),
        ({"time": "half"}, "full or factorised"),
        ({"conditioning": True}, "images have none"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_bad_calls():
    net, x, log_snr = make(classes=3), torch.randn(2, 2, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match=r"takes \(B, 2, H, W\)"):
        net(x[:, :1], log_snr)
    with pytest.raises(ValueError, match="label 3 is out of range"):
        net(x, log_snr, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="one per sample"):
        net(x, log_snr[:1])
    with pytest.raises(ValueError, match="made without conditioning"):
        make(frames=2)(x[:, :, None], log_snr, known=x[:, :, None], known_mask=torch.ones(2, 1, dtype=torch.bool))
