"""Noise carried by the flows of a batch (E40): its law against `Warped`, in training and in sampling."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.data import MotionClips
from ornstein.data.flow import FlowFile, estimate_flow, flow_of, read_flow
from ornstein.errors import UserError
from ornstein.evaluation import motion_error, warp_error
from ornstein.noise import Carried, Warped, carry, from_config, parse, to_config
from ornstein.noise.warped import _weights
from ornstein.training.carried import Rows, noised, rows_and_labels

FLOW = 1.3 * torch.randn(2, 3, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _two_a_side(flow: Tensor) -> Tensor:
    weights = _weights(flow, 2).to_dense()
    return weights @ weights.mT


def test_carry_has_the_covariance_of_the_areas() -> None:
    """Each white number is followed by itself, so the weights and C = W W^T are exact."""
    count = 0

    def counted(rows: int, columns: int) -> Tensor:
        nonlocal count
        count += rows
        return torch.zeros(rows, columns, dtype=torch.float64)

    carry(FLOW, 1, counted, cells=2)
    first = 0

    def units(rows: int, columns: int) -> Tensor:
        nonlocal first
        first += rows
        return torch.eye(columns, dtype=torch.float64)[first - rows : first]

    weights = carry(FLOW, count, units, cells=2)  # (B, pieces, F, H, W)
    for b in range(2):
        w = weights[b].flatten(1)
        torch.testing.assert_close(w.mT @ w, _two_a_side(FLOW[b]), rtol=1e-6, atol=1e-6)


def test_shares_of_white_noise() -> None:
    draw = torch.Generator().manual_seed(1)
    white = lambda rows, columns: torch.randn(rows, columns, generator=draw)  # noqa: E731
    still = carry(torch.zeros(64, 3, 2, 8, 8), 2, white, degrade=0.3)
    g = 0.3**2 / (0.7**2 + 0.3**2)
    assert float(still.square().mean()) == pytest.approx(1, abs=0.02)
    assert float((still[:, :, 0] * still[:, :, 2]).mean()) == pytest.approx(1 - g, abs=0.02)


def test_a_batch_is_the_covariances_of_its_samples() -> None:
    noise = Carried(0.2).along(FLOW)
    z = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    for name in ("color", "matvec", "whiten", "solve"):
        apart = torch.cat([getattr(Warped(FLOW[b].float(), 0.2), name)(z[b : b + 1]) for b in range(2)])
        torch.testing.assert_close(getattr(noise, name)(z), apart)
    again = from_config(to_config(Carried(0.2)))
    assert isinstance(again, Carried) and again == Carried(0.2) and again.needs_flow
    assert parse("warped", 4) == Carried() and parse("warped:0.5", 9) == Carried(0.5)


def test_samples_follow_the_flow_of_their_own_row_in_any_batch() -> None:
    """With no data at all the denoiser is zero, and what the solver starts from is the noise."""
    mixture = orn.oracles.GaussianMixture([1.0], torch.zeros(1, 120), torch.eye(120)[None])
    process = orn.Process(orn.schedules.Cosine(), Carried(0.1))

    class Zero:
        def __init__(self) -> None:
            self.process = process

        def __call__(self, x: Tensor, t: float, **cond: object) -> orn.Prediction:
            assert not cond
            return process.convert(x, t, x0=torch.zeros_like(x))

    assert mixture is not None
    states: list[Tensor] = []
    keep = lambda state: states.append(state.x) if state.step == 0 else None  # noqa: E731
    shape = (2, 1, 4, 5, 6)
    orn.sample(Zero(), shape, steps=1, solver="ddim", cond={"flow": FLOW.float()}, batch=1, callback=keep)
    apart = torch.cat(states)
    states.clear()
    orn.sample(Zero(), shape, steps=1, solver="ddim", cond={"flow": FLOW.float()}, batch=2, callback=keep)
    torch.testing.assert_close(states[0], apart)
    z = orn.randomness.normal(shape, 0, torch.arange(2), 0)
    torch.testing.assert_close(apart[1:], Warped(FLOW[1].float(), 0.1).color(z[1:]) * process.schedule.sigma(1.0))
    with pytest.raises(ValueError, match="needs the flow of each sample"):
        orn.sample(Zero(), shape, steps=1, solver="ddim")
    plain = orn.oracles.GaussianMixture([1.0], torch.zeros(1, 4), torch.eye(4)[None])
    with pytest.raises(ValueError, match="follows no flow"):
        d = plain.denoiser(orn.Process(orn.schedules.Cosine()))
        orn.sample(d, (2, 4), steps=1, solver="ddim", cond={"flow": FLOW})


def test_training_noise_of_a_row_does_not_depend_on_its_part_of_the_batch() -> None:
    process = orn.Process(orn.schedules.Cosine(), Carried(0.1))
    x0, t = torch.randn(2, 1, 4, 5, 6), torch.tensor([0.3, 0.8])
    whole = noised(process, x0, t, FLOW, (2, slice(None)), torch.Generator().manual_seed(3))
    part = noised(process, x0[1:], t[1:], FLOW[1:], (2, slice(1, 2)), torch.Generator().manual_seed(3))
    torch.testing.assert_close(whole.eps[1:], part.eps)
    a, s = process.coefficients(t, x0)
    torch.testing.assert_close(whole.x_t, a * x0 + s * whole.eps)


def test_rows_and_labels_come_back() -> None:
    clips = MotionClips("moving-digits", 3, 16, count=50)
    rows, labels = rows_and_labels(Rows(clips).batch([4, 49, 0])[1])
    assert rows.tolist() == [4, 49, 0] and labels is not None
    assert torch.equal(labels, clips.batch([4, 49, 0])[1])  # pyright: ignore[reportArgumentType]
    assert rows_and_labels(Rows(MotionClips("bouncing-balls", 3, 16)).batch([7])[1])[1] is None


@pytest.mark.parametrize("source", ["moving-digits", "bouncing-balls", "drifting-textures"])
def test_the_flow_of_a_bundled_set_carries_each_frame_into_the_next(source: str) -> None:
    clips = MotionClips(source, 5, 32, count=12)
    x, flow = clips.batch(range(12))[0], clips.flow(range(12))
    # what the background is covered with does not come from there
    assert float(warp_error(x, flow).mean()) < 0.4 * float(warp_error(x, torch.zeros_like(flow)).mean())
    assert float(motion_error(estimate_flow(x), flow).mean()) < 0.3 * float(
        motion_error(torch.zeros_like(flow), flow).mean()
    )


def test_motion_error_by_hand() -> None:
    wanted = torch.zeros(2, 1, 2, 2, 2)
    wanted[0, 0, 0, 0, 0] = 3.0  # one pixel moves, the second clip stands still
    found = torch.zeros_like(wanted)
    found[0, 0, 1, 0, 0] = 4.0
    found[0, 0, 0, 1, 1] = 100.0
    found[1, 0, 1, 0, 0] = 2.0
    assert motion_error(found, wanted).tolist() == [5.0, 0.5]
    with pytest.raises(ValueError, match="flows are"):
        motion_error(found[:1], wanted)


def test_flows_are_estimated_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = MotionClips("drifting-textures", 4, 16, count=6)
    first = FlowFile(clips, "dis", tmp_path / "flow")(torch.tensor([4, 1, 4]))
    exact = flow_of(clips, [4, 1, 4])
    assert float((first - exact).norm(dim=2).mean()) < 0.1
    monkeypatch.setattr("ornstein.data.flow.estimate_flow", lambda *_: pytest.fail("estimated again"))
    again = FlowFile(clips, "dis", tmp_path / "flow")
    assert torch.equal(again(torch.tensor([1, 4])), first[[1, 0]])
    with pytest.raises(pytest.fail.Exception):
        again(torch.tensor([0]))
    assert torch.equal(FlowFile(clips, None, tmp_path / "flow")(torch.tensor([3])), clips.flow([3]))


def test_clips_without_motion_and_wrong_ones() -> None:
    still = torch.rand(2, 1, 3, 16, 16)[:, :, :1].expand(-1, -1, 3, -1, -1)
    assert not bool(estimate_flow(still).any())
    assert estimate_flow(still[:, :, :1]).shape == (2, 0, 2, 16, 16)
    with pytest.raises(ValueError, match="not finite"):
        estimate_flow(still * math.nan)
    with pytest.raises(UserError, match="dis, farneback, homography"):
        estimate_flow(still, "raft")
    one = Carried(0.1).along(torch.zeros(2, 0, 2, 8, 8))  # one frame: white noise
    z = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64)
    assert float(one.matvec(z).sub(z).abs().max()) < 1e-6
    for bad, message in ((FLOW[:, :, :1], "flows are"), (FLOW * math.inf, "not finite")):
        with pytest.raises(ValueError, match=message):
            Carried(0.1).along(bad)


def test_a_homography_is_found() -> None:
    clips = MotionClips("drifting-textures", 3, 32, count=2)
    flow = estimate_flow(clips.batch([0, 1])[0], "homography")
    assert float((flow - clips.flow([0, 1])).norm(dim=2).mean()) < 0.1


def test_files_of_flow(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((3, 2, 5, 6)))
    assert read_flow(tmp_path / "one.npy", (4, 5, 6)).shape == (1, 3, 2, 5, 6)
    np.save(tmp_path / "text.npy", np.full((3, 2, 5, 6), "a"))
    np.save(tmp_path / "nan.npy", np.full((3, 2, 5, 6), np.nan))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    for name, frame, message in (
        ("one", (5, 5, 6), "a flow of these clips is"),
        ("text", (4, 5, 6), "a flow is numbers"),
        ("nan", (4, 5, 6), "not finite"),
        ("broken", (4, 5, 6), "is no flow"),
        ("missing", (4, 5, 6), "is no flow"),
    ):
        with pytest.raises(UserError, match=message):
            read_flow(tmp_path / f"{name}.npy", frame)
