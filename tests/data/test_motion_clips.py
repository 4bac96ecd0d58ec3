"""Bundled clips: what moves is what their description says."""

import math

import pytest
import torch

from ornstein.data import MotionClips, open_clips, to_uint8, to_unit
from ornstein.data.motion import BALL_RADIUS, BALLS, ball_motion, digit_motion, texture_motion
from ornstein.errors import UserError
from ornstein.evaluation.motion import warp_error

SOURCES = ["moving-digits", "bouncing-balls", "drifting-textures"]
FIRST = torch.arange(64)


@pytest.mark.parametrize("source", SOURCES)
def test_a_clip_is_a_function_of_its_number_and_the_seed(source):
    clips = open_clips(source, frames=4, size=32)
    assert isinstance(clips, MotionClips)
    x, labels = clips.batch([3, 7, 9_999])
    assert x.shape == (3, 1, 4, 32, 32) and x.dtype == torch.float32 and clips.shape == x.shape[1:]
    assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.2
    alone, label = clips.batch(torch.tensor([7]))
    assert torch.equal(alone[0], x[1])
    assert (labels is None and label is None) or labels[1] == label[0]
    other = MotionClips(source, 4, seed=1)
    assert not torch.equal(other.batch([7])[0], alone) and other.fingerprint != clips.fingerprint
    assert torch.equal(x, to_unit(to_uint8(x)))  # 8-bit pixels


@pytest.mark.parametrize("source", SOURCES)
def test_longer_clips_go_on_as_shorter_ones_began(source):
    long, short = (open_clips(source, frames=n, size=32).batch([0, 1])[0] for n in (9, 4))
    assert torch.equal(long[:, :, :4], short)
    assert all(not torch.equal(long[:, :, t], long[:, :, t + 1]) for t in range(8))


def test_colour_is_grey_three_times_and_sizes_scale():
    grey, colour = (open_clips("bouncing-balls", frames=2, size=64, channels=c).batch([5])[0] for c in (1, 3))
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1, -1)) and grey.shape[-1] == 64


def test_digits_bounce_within_the_frame_at_their_speed_and_are_drawn_where_they_are():
    corner = digit_motion(FIRST, 40, 32, seed=0)
    assert corner.min() >= 0 and corner.max() <= 32 - 14
    speed = corner.diff(dim=1).norm(dim=-1)
    straight = speed.median(1).values
    assert straight.min() > 0.9 and straight.max() < 2.6
    turns = (corner.diff(dim=1)[:, 1:] * corner.diff(dim=1)[:, :-1] < 0).any(-1).any(1)
    assert turns.float().mean() > 0.9  # nearly all meet a border within 40 frames
    clips = open_clips("moving-digits", frames=40, size=32)
    x, labels = clips.batch(FIRST)
    ink = (x[:, 0] + 1).double()
    pixel = torch.arange(32) + 0.5
    centre = (
        torch.stack([(ink * pixel).sum((2, 3)), (ink * pixel[:, None]).sum((2, 3))], -1) / ink.sum((2, 3))[..., None]
    )
    # its centre of ink moves as its corner does, also between pixels
    gap = (centre - corner) - (centre - corner).mean(1, keepdim=True)
    assert gap.abs().max() < 0.25 and gap.square().mean().sqrt() < 0.05
    assert labels is not None and set(labels.tolist()) == set(range(10)) and clips.classes == list("0123456789")


def test_balls_keep_energy_stay_inside_and_apart():
    x, v = ball_motion(FIRST, 60, 32, seed=0)
    radius = BALL_RADIUS * 32
    energy = v.square().sum((2, 3))
    torch.testing.assert_close(energy, energy[:, :1].expand_as(energy))
    assert x.min() > radius - 0.5 and x.max() < 32 - radius + 0.5
    pairs = [(i, j) for i in range(BALLS) for j in range(i)]
    distance = torch.stack([(x[:, :, i] - x[:, :, j]).norm(dim=-1) for i, j in pairs])
    assert distance.min() > 2 * radius - 0.8  # no deeper than a substep's way
    # both kinds of collision happen, and momentum along an axis changes at walls only
    assert (v.diff(dim=1).abs() > 1e-9).any(-1).any(2).float().mean() > 0.1
    away = (x.amin((2, 3)) > radius + 1.5) & (x.amax((2, 3)) < 30.5 - radius)
    calm = away[:, 1:] & away[:, :-1]
    change = v.sum(2).diff(dim=1).norm(dim=-1)[calm]
    assert change.max() < 1e-9
    met = (v.diff(dim=1).norm(dim=-1).amax(2) > 1e-9)[calm]
    assert met.any()


def test_balls_are_drawn_with_their_area():
    x = open_clips("bouncing-balls", frames=1, size=64).batch(FIRST)[0]
    covered = ((x + 1) / 2).sum((1, 2, 3, 4))
    torch.testing.assert_close(covered, torch.full_like(covered, BALLS * math.pi * (0.11 * 64) ** 2), rtol=0.02, atol=0)


def test_textures_move_with_their_flow_and_with_no_other():
    clips = open_clips("drifting-textures", frames=6, size=64)
    x, flow = clips.batch(FIRST[:8])[0], clips.flow(FIRST[:8])
    assert flow.shape == (8, 5, 2, 64, 64)
    power = x.square().mean((1, 2, 3, 4))
    assert (warp_error(x, flow) < 1e-3 * power).all()
    assert (warp_error(x, torch.zeros_like(flow)) > 0.02 * power).all()
    assert (warp_error(x, -flow) > 0.1 * power).all()
    assert (warp_error(x, flow.flip(2)) > warp_error(x, flow)).all()
    displacement, steps = texture_motion(FIRST, 12, 32, seed=0)
    torch.testing.assert_close(displacement.diff(dim=1), steps)
    speed = steps.norm(dim=-1)
    assert speed.min() > 0.3 - 1e-9 and speed.max() < 1.5 + 1e-9
    torch.testing.assert_close(speed, speed[:, :1].expand_as(speed))


def test_textures_are_band_limited():
    x = open_clips("drifting-textures", frames=1, size=64).batch(FIRST)[0][:, 0, 0]
    window = torch.hann_window(64, periodic=False)
    spectrum = torch.fft.fft2((x - x.mean()) * window * window[:, None]).abs().square().mean(0)
    radius = torch.fft.fftfreq(64)[:, None].hypot(torch.fft.fftfreq(64)) * 2  # cycles per pixel of a frame of 32
    band = (radius > 1 / 20 - 0.06) & (radius < 1 / 6 + 0.06)
    assert spectrum[band].sum() > 0.95 * spectrum.sum()


def test_split_shares_nothing_and_keeps_the_source():
    clips = MotionClips("moving-digits", 3, count=50)
    train, held_out = clips.split(0.2, seed=4)
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted([*train.indices.tolist(), *held_out.indices.tolist()]) == list(range(50))
    assert torch.equal(held_out.batch([2])[0], clips.batch(held_out.indices[2:3])[0])
    assert len({s.fingerprint for s in (clips, train, held_out)}) == 3
    with pytest.raises(UserError, match="at least 2 are needed"):
        MotionClips("moving-digits", 3, count=1).split(0.5, 0)


def test_wrong_settings():
    for settings, message in (
        ({"size": 8}, "at 16 to 256 pixels"),
        ({"frames": 0}, "at least 1"),
        ({"stride": 2}, "stride and hop are for videos"),
        ({"hop": 2}, "stride and hop are for videos"),
    ):
        with pytest.raises(UserError, match=message):
            open_clips("moving-digits", **{"frames": 4} | settings)
    with pytest.raises(UserError, match="choose one of moving-digits, bouncing-balls, drifting-textures"):
        MotionClips("still-life", 4)
