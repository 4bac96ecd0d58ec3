"""Deep features kept between steps: exact where nothing is kept, and recomputed at each trajectory."""

import pytest
import torch

import ornstein as orn
from ornstein.compress.caching import cached
from ornstein.errors import UserError
from ornstein.nets import DiT, UNet, VideoUNet
from running import done, ornstein, refused


def model(net=None):
    net = net or UNet(1, 8, 3, width=16, multipliers=(1, 2, 2), depths=(1, 1, 1), attention=(4,))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draw)
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 8, 8), ("a", "b", "c"))).eval()


def drawn(d, **more):
    return orn.sample(d, (4, 1, 8, 8), steps=6, cond={"label": torch.tensor([0, 1, 2, 0])}, **more)


def test_kept_for_one_evaluation_is_the_network():
    d = model()
    torch.testing.assert_close(drawn(cached(d, 1)), drawn(d))


def test_the_deep_levels_are_computed_at_every_third_evaluation_of_each_trajectory():
    d = model()
    calls = []
    d.net.encoder[1].register_forward_hook(lambda *_: calls.append(1))
    other = cached(d, 3)
    first = drawn(other)
    assert len(calls) == 2  # of six evaluations
    torch.testing.assert_close(drawn(other), first)  # nothing is left over from the first trajectory
    assert not torch.equal(first, drawn(d))


def test_guidance_keeps_both_sides_apart():
    d = model()
    torch.testing.assert_close(drawn(cached(d, 1), guidance=2.0), drawn(d, guidance=2.0))


def test_other_networks_are_refused():
    for net in (DiT(1, 8, width=16, depth=1, heads=2), UNet(1, 8, width=8, multipliers=(1,), depths=(1,))):
        with pytest.raises(UserError, match="two levels"):
            cached(model(net), 2)


def test_clips_keep_their_deep_features_too():
    net = VideoUNet(1, 8, 3, width=16, multipliers=(1, 2), depths=(1, 1), attention=(4,), conditioning=True)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draw)
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 3, 8, 8))).eval()
    assert cached(d, 2).conditions == d.conditions
    calls = []
    net.image.encoder[1][0].register_forward_hook(lambda *_: calls.append(1))
    plain, same, other = (orn.sample(m, (2, 1, 3, 8, 8), steps=4) for m in (d, cached(d, 1), cached(d, 2)))
    torch.testing.assert_close(same, plain)
    assert len(calls) == 4 + 4 + 2 and not torch.equal(other, plain)


def test_the_command_says_what_is_changed_and_refuses_what_does_nothing(tmp_path):
    fast = ("--steps", 1, "--batch", 4, "--device", "cpu", "--no-report", "-q")
    for net in ("xs", "dit:xs"):
        done("train", "--data", "digits", "--net", net, "--out", tmp_path / net, *fast)
    words = ("-n", 2, "--steps", 2, "--device", "cpu", "--out")
    assert "differ by" in done("sample", tmp_path / "xs", "--cache", 2, *words, tmp_path / "a")
    assert "30% merged: the first 4 differ by" in done(
        "sample", tmp_path / "dit:xs", "--merge", 0.3, *words, tmp_path / "b"
    )
    refused(ornstein("sample", tmp_path / "xs", "--merge", 0.3, *words, tmp_path / "c"), "UNet has none")
    refused(ornstein("sample", tmp_path / "dit:xs", "--cache", 2, *words, tmp_path / "c"), "this DiT is not")
    refused(ornstein("sample", tmp_path / "dit:xs", "--merge", 0.9, *words, tmp_path / "c"), "--merge")
