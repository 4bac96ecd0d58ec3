"""Integral layers (E42): the same network at full width, and exact at any width where the kernels are smooth."""

import json
import math

import pytest
import torch

import ornstein as orn
from ornstein.compress.groups import Group, Member
from ornstein.compress.imitation import Imitation
from ornstein.compress.int8 import quantised
from ornstein.compress.integral import (
    Elastic,
    at_width,
    elastic_groups,
    ordered,
    resampled,
    shortest_path,
    total_variation,
)
from ornstein.errors import UserError
from ornstein.nets import DiT, UNet, VideoUNet
from ornstein.store import dequantised
from running import done, ornstein, refused

FAST = ("--device", "cpu", "--no-report", "-q")


def randomised(net):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draw)
    return net.eval()


def unet():
    return randomised(UNet(1, 8, width=32, multipliers=(1, 2), depths=(1, 1), attention=(4,)))


def wrapped(net):
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 8, 8)))


def trapezoid(n):
    q = torch.full((n,), 1 / (n - 1))
    q[0] = q[-1] = 0.5 / (n - 1)
    return q


def smooth(net):
    """The net with kernels that are constant in what they make, and linear in what they read."""
    state = net.state_dict()
    for group in elastic_groups(net):
        for member in group.members:
            if member.axis == 0:
                tensor = state[member.name]
                parts = tensor.reshape(member.copies, group.size, -1)
                tensor.copy_(parts.mean(1, keepdim=True).expand_as(parts).reshape(tensor.shape))
    for group in elastic_groups(net):
        for member in group.members:
            if member.axis == 1:
                tensor = state[member.name].transpose(0, 1)
                slope = torch.linspace(0.2, 3.0, group.size) * trapezoid(group.size)
                tensor[:] = tensor.mean(0, keepdim=True).clone() * slope.view(-1, *[1] * (tensor.ndim - 1)) * 8
    return net


def test_the_order_of_channels_changes_nothing_but_the_total_variation():
    net, x, log_snr = unet(), torch.randn(3, 1, 8, 8), torch.tensor([-2.0, 0.0, 3.0])
    other = ordered(net)
    torch.testing.assert_close(other(x, log_snr), net(x, log_snr), rtol=1e-5, atol=1e-5)
    assert not torch.equal(other.stem.weight, net.stem.weight)
    assert total_variation(other) < total_variation(net)


def test_full_width_is_the_network_itself():
    d = wrapped(unet())
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(at_width(d, 1.0)(x, 0.5).x0, d(x, 0.5).x0, rtol=0, atol=1e-5)


def test_a_network_of_clips_is_resampled():
    net = randomised(VideoUNet(1, 8, 3, width=16, multipliers=(1, 2), depths=(1, 1), attention=(4,)))
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 3, 8, 8))).eval()
    x = torch.randn(2, 1, 3, 8, 8)
    torch.testing.assert_close(at_width(d, 1.0)(x, 0.5).x0, d(x, 0.5).x0, rtol=0, atol=1e-5)
    half = at_width(d, 0.5)
    assert half(x, 0.5).x0.shape == x.shape
    assert sum(p.numel() for p in half.net.parameters()) < 0.7 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("make", [unet, lambda: randomised(DiT(1, 8, width=32, depth=2, heads=2))], ids=["unet", "dit"])
def test_a_net_that_is_smooth_by_construction_is_exact_at_any_width(make):
    """Equal channels have the mean and variance of one; the trapezoid rule is exact for a linear kernel."""
    d = wrapped(smooth(make()))
    x = torch.randn(2, 1, 8, 8)
    expected = d(x, 0.4).x0
    assert float(expected.std()) > 0.05
    for width in (0.25, 0.4, 0.5, 0.8):
        small = at_width(d, width)
        assert sum(p.numel() for p in small.net.parameters()) < sum(p.numel() for p in d.net.parameters())
        torch.testing.assert_close(small(x, 0.4).x0, expected, rtol=1e-4, atol=1e-4)


def test_quadrature_of_a_smooth_kernel_has_order_two():
    """y = int_0^1 cos(3 v) v dv, from layers of more and more nodes resampled to half of them."""
    exact = math.sin(3) / 3 + (math.cos(3) - 1) / 9
    group = lambda n: [Group("g", n, (Member("made"), Member("read", axis=1)))]  # noqa: E731

    def error(n):
        v = torch.linspace(0, 1, 2 * n, dtype=torch.float64)
        q = trapezoid(2 * n).double()
        out = resampled(group(2 * n), {"made": v[:, None], "read": (torch.cos(3 * v) * q)[None]}, {"g": n})
        return abs(float(out["read"] @ out["made"]) - exact)

    assert error(16) / error(32) == pytest.approx((31 / 15) ** 2, rel=0.1)


def test_the_path_through_points_on_a_line_is_the_line():
    at = torch.randperm(12, generator=torch.Generator().manual_seed(1)).double()
    path = at[shortest_path((at[:, None] - at).abs())]
    assert path.diff().abs().sum() == 11


def test_gradients_at_a_small_width_reach_the_large_weights():
    d = wrapped(unet())
    loss = Elastic(Imitation(wrapped(unet())), d)
    z = torch.randn(4, 1, 8, 8)
    z[0, 0, 0, 0] = 0.0  # a width between the ends
    loss(d, torch.randn(4, 1, 8, 8), torch.rand(4), z).mean().backward()
    assert len(loss.skeletons) == 1
    assert all(p.grad is not None for name, p in d.net.named_parameters() if "label" not in name)


def test_one_checkpoint_is_sampled_at_every_width(tmp_path):
    run, out = tmp_path / "run", tmp_path / "elastic"
    done("train", "--data", "digits", "--net", "xs", "--steps", 2, "--batch", 16, "--out", run, *FAST)
    done("compress", run, "--method", "integral", "--steps", 3, "--batch", 16, "--out", out, *FAST)
    assert json.loads((out / "config.json").read_text())["integral"] == 0.25
    pictures = {}
    for width in (0.25, 1.0):
        folder = tmp_path / f"w{width}"
        done("sample", out, "--width", width, "-n", 2, "--steps", 2, "--out", folder, "--device", "cpu")
        pictures[width] = (folder / "grid.png").read_bytes()
    assert pictures[0.25] != pictures[1.0]
    refused(ornstein("sample", run, "--width", 0.5, "-n", 1), "one width", "integral")
    refused(ornstein("sample", out, "--width", 1.5, "-n", 1), "--width")
    x = tmp_path / "x"
    refused(ornstein("compress", run, "--method", "integral", "--macs", 0.5, "--out", x, *FAST), "macs does nothing")
    refused(ornstein("compress", run, "--method", "int8", "--steps", 5, "--out", x, *FAST), "steps does nothing")
    said = done("compress", run, "--method", "int8", "--out", tmp_path / "int8", "--device", "cpu")
    assert "8 bits" in said
    large, small = ((folder / "model.safetensors").stat().st_size for folder in (run, tmp_path / "int8"))
    assert small < 0.4 * large
    done("sample", tmp_path / "int8", "-n", 1, "--steps", 1, "--device", "cpu")


def test_8_bits_are_off_by_at_most_half_a_scale():
    state = {"a.weight": torch.randn(7, 5, 3, 3), "a.bias": torch.randn(7), "zero.weight": torch.zeros(20, 20)}
    stored = quantised(state)
    assert stored["a.weight"].dtype == torch.int8 and stored["a.bias"] is state["a.bias"]
    back = dequantised(stored)
    assert back.keys() == state.keys()
    assert torch.equal(back["zero.weight"], state["zero.weight"])
    off = (back["a.weight"] - state["a.weight"]).abs().flatten(1).amax(1)
    assert bool((off <= state["a.weight"].abs().flatten(1).amax(1) / 254 * 1.0001).all())


def test_a_width_out_of_range_is_refused():
    with pytest.raises(UserError, match="above 0 and at most 1"):
        at_width(wrapped(unet()), 0.0)
