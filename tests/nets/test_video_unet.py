import json

import pytest
import torch

from ornstein.nets import UNet, VideoUNet, frames_known, known_masks
from ornstein.nets.video import TemporalAttention, clean_frames

SMALL = {"channels": 2, "size": 8, "width": 16, "multipliers": (1, 2), "depths": (1, 1), "attention": (4,)}


def shaken(net):
    """Parameters off zero: layers that start at zero would hide what reaches the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net.eval()


def make(**settings):
    return shaken(VideoUNet(**SMALL | {"frames": 5} | settings))


def clips(batch=2, frames=5, seed=1):
    return torch.randn(batch, 2, frames, 8, 8, generator=torch.Generator().manual_seed(seed))


def influence(net, frame, **given):
    """Which input frames the output at `frame` depends on."""
    x = clips(1).requires_grad_()
    net(x, torch.zeros(1), **given)[0, 0, frame].sum().backward()
    assert x.grad is not None
    return (x.grad.abs().amax((0, 1, 3, 4)) > 0).tolist()


@pytest.mark.parametrize(("conditioning", "patch"), [(False, 1), (True, 1), (True, 2)])
def test_from_an_image_net_it_starts_as_that_net_on_each_frame(conditioning, patch):
    image = shaken(UNet(**SMALL, classes=3, patch=patch))
    net = VideoUNet.from_image(image, 5, conditioning=conditioning).eval()
    x, log_snr, label = clips(), torch.tensor([-1.0, 2.0]), torch.tensor([2, -1])
    given = {"known": clips(seed=2), "known_mask": torch.rand(2, 5) < 0.5} if conditioning else {}
    expected = torch.stack([image(frame, log_snr, label) for frame in x.unbind(2)], 2)
    torch.testing.assert_close(net(x, log_snr, label, **given), expected)
    assert expected.std() > 0.01
    # and it can leave that start: every layer along time gets a gradient
    net.train()(x, log_snr, label, **given).square().mean().backward()
    for name, parameter in net.named_parameters():
        if name.endswith(("conv.weight", "attention.out.weight", "given.weight")) and "image" not in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_every_frame_sees_every_other_through_attention_and_its_neighbours_without():
    assert influence(make(), 0) == [True] * 5
    assert influence(make(attention=(), temporal_attention=(), multipliers=(1,), depths=(1,)), 0) == [
        *(True, True, True),  # a convolution in the encoder and one in the decoder
        *(False, False),
    ]


def test_clips_do_not_mix_and_shorter_ones_are_taken():
    net, x, log_snr = make(), clips(3), torch.zeros(3)
    torch.testing.assert_close(net(x, log_snr)[1:], net(x[1:], log_snr[1:]))
    for frames in (1, 2, 4):
        assert net(x[:, :, :frames], log_snr).shape == (3, 2, frames, 8, 8)
    with pytest.raises(ValueError, match="a clip of 6 frames, but this net was made for up to 5"):
        net(clips(frames=6), torch.zeros(2))


def test_attention_over_frames_is_softmax_attention_with_a_bias_by_distance():
    torch.manual_seed(0)
    layer = TemporalAttention(128, 6)  # 2 heads of 64, made for more frames than it gets
    torch.nn.init.normal_(layer.out.weight, std=0.1)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2 * 4, 128, 3, 3)
    tokens = layer.norm(x).view(2, 4, 128, 9).permute(0, 3, 1, 2)  # (B, HW, F, C)
    q, k, v = layer.qkv(tokens).split(128, dim=-1)
    heads = []
    for number, h in enumerate((slice(0, 64), slice(64, 128))):
        logits = q[..., h] @ k[..., h].mT / 8
        for i in range(4):
            for j in range(4):
                logits[..., i, j] += layer.bias[number, j - i + 5]
        heads.append(logits.softmax(-1) @ v[..., h])
    expected = x + layer.out(torch.cat(heads, -1)).permute(0, 2, 3, 1).reshape(8, 128, 3, 3)
    torch.testing.assert_close(layer(x, 2), expected)


@pytest.mark.parametrize("conditioning", [True, "held"])
def test_known_frames_are_seen_and_only_where_the_mask_says(conditioning):
    net, x, log_snr = make(conditioning=conditioning), clips(), torch.zeros(2)
    mask = frames_known(5, 2).expand(2, 5)
    known = clips(seed=3)
    out = net(x, log_snr, known=known, known_mask=mask)
    assert (out - net(x, log_snr)).abs().max() > 1e-3
    elsewhere = known.masked_fill(~mask[:, None, :, None, None], torch.nan)
    torch.testing.assert_close(net(x, log_snr, known=elsewhere, known_mask=mask), out)
    other = net(x, log_snr, known=known + mask[:, None, :, None, None], known_mask=mask)
    assert (other - out)[:, :, 4].abs().max() > 1e-4  # the last frame knows of the first
    # Trained with a mask that is all false, and sampled without one.
    torch.testing.assert_close(net(x, log_snr, known=known, known_mask=torch.zeros_like(mask)), net(x, log_snr))


def test_the_nearest_known_frame_is_held_where_none_is_known():
    known = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(3, -1, -1, 2, 2).clone()
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, [1, 4]] = True
    mask[1, 5] = True
    known[:, :, 0] = torch.nan  # is never known
    shown = clean_frames(known, mask, torch.float32, torch.device("cpu"), held=True)
    assert shown[:, 0, :, 1, 1].tolist() == [[1, 1, 1, 4, 4, 4], [5] * 6, [0] * 6]
    assert torch.equal(shown[:, 1, :, 0, 0].bool(), mask)
    plain = clean_frames(known, mask, torch.float32, torch.device("cpu"))
    assert plain[0, 0, :, 0, 0].tolist() == [0, 1, 0, 0, 4, 0]
    with pytest.raises(ValueError, match="conditioning is true, false or 'held', not 'hold'"):
        make(conditioning="hold")


def test_config_rebuilds_the_net_and_a_checkpoint_keeps_it(tmp_path):
    import ornstein as orn
    from ornstein.checkpoint import load

    net = make(classes=3, conditioning=True, temporal_attention=(8, 4))
    again = VideoUNet(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    x, log_snr, label = clips(), torch.randn(2), torch.tensor([0, -1])
    assert torch.equal(net(x, log_snr, label), again.eval()(x, log_snr, label))
    process = orn.Process(orn.schedules.Cosine(), orn.noise.AR1(5, 0.8))
    d = orn.Denoiser(net, process).eval()
    d.save(tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(x, 0.5, label=label).x0, d(x, 0.5, label=label).x0)


def test_presets_follow_those_of_images():
    net = VideoUNet.preset("xs", channels=1, size=32, frames=16, classes=10)
    image = UNet.preset("xs", channels=1, size=32, classes=10, patch=1)
    assert net.config.items() >= image.config.items()
    x = torch.randn(1, 1, 16, 32, 32)
    assert torch.equal(net(x, torch.zeros(1)), torch.zeros_like(x))
    count, image_count = (sum(p.numel() for p in n.parameters()) for n in (net, image))
    assert image_count < count < 1.5 * image_count
    with pytest.raises(ValueError, match="'xxl': choose one of"):
        VideoUNet.preset("xxl", channels=1, size=32, frames=16)


def test_bf16_autocast_is_close():
    net, x, log_snr = make(), clips(), torch.zeros(2)
    out = net(x, log_snr)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, log_snr)
    assert half.dtype == torch.float32
    assert (half - out).norm() < 0.03 * out.norm()


def test_masks_of_training_are_nothing_first_frames_both_ends_and_any():
    masks = known_masks(4000, 6, torch.Generator().manual_seed(0))
    assert masks.dtype == torch.bool and not masks.all(1).any()
    first = torch.tensor([bool((m == (torch.arange(6) < m.sum())).all()) and bool(m.any()) for m in masks])
    ends = masks[:, 0] & masks[:, -1]
    assert abs((masks.sum(1) == 0).float().mean() - 0.25) < 0.03
    assert 0.25 < first.float().mean() < 0.45 and 0.15 < ends.float().mean() < 0.45
    counts = torch.bincount(masks.sum(1), minlength=6)[1:6].float() / 4000
    assert counts.min() > 0.1  # each number of known frames comes up
    assert masks.float().mean(0).std() < 0.15  # and each place
    again = known_masks(4000, 6, torch.Generator().manual_seed(0))
    assert torch.equal(masks, again)
    with pytest.raises(ValueError, match="at least 2 frames"):
        known_masks(3, 1, torch.Generator())
    assert frames_known(5, 2, 1).tolist() == [True, True, False, False, True]
    for wrong in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="know some, not all"):
            frames_known(5, *wrong)


def test_bad_calls():
    net, blind, x, log_snr = make(conditioning=True, classes=2), make(), clips(), torch.zeros(2)
    mask = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"takes \(B, 2, F, H, W\)"):
        net(x[:, :, 0], log_snr)
    with pytest.raises(ValueError, match="label 2 is out of range"):
        net(x, log_snr, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="one was given without the other"):
        net(x, log_snr, known=x)
    with pytest.raises(ValueError, match="made without conditioning"):
        blind(x, log_snr, known=x, known_mask=mask)
    for known, known_mask in ((x[:1], mask), (x, mask[:, :4]), (x, mask.float())):
        with pytest.raises(ValueError, match=r"they must be \(2, 2, 5, 8, 8\) and bool \(2, 5\)"):
            net(x, log_snr, known=known, known_mask=known_mask)
    with pytest.raises(ValueError, match="at least 1 frame"):
        make(frames=0)


def test_a_learned_variance_is_that_of_its_image_net():
    image = shaken(UNet(**SMALL, learned_variance=True))
    net = VideoUNet.from_image(image, 5).eval()
    assert net.config["learned_variance"]
    x, log_snr = clips(), torch.tensor([-1.0, 2.0])
    expected = torch.stack([image(frame, log_snr) for frame in x.unbind(2)], 2)
    assert expected.shape == (2, 4, 5, 8, 8)
    torch.testing.assert_close(net(x, log_snr), expected)
