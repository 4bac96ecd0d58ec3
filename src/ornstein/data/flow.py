"""Optical flow of clips: exact where it is known, else estimated once and kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data.clips import Clips
from ornstein.data.motion import MotionClips
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.store import make_folder, write_error

__all__ = ["FLOWS", "FlowFile", "estimate_flow", "flow_of", "read_flow"]

FLOWS = ("exact", "dis", "farneback", "homography")
_SMALL = 64  # pixels a side, below which frames are enlarged: OpenCV's patches have 8
_ENLARGED = 4
_POINTS = 4  # pairs of points that decide a homography


def estimate_flow(clips: Tensor, method: str = "dis") -> Tensor:
    """The optical flow of clips (B, C, F, H, W) in [-1, 1]: float32 (B, F - 1, 2, H, W), (dx, dy) in pixels, forward.

    Args:
        clips: on any device. One frame gives a flow of no steps; clips that stand still give zeros.
        method: "dis" (Kroeger et al. 2016, arXiv:1603.03590), "farneback" (Farneback 2003), or "homography", one plane
            motion a step, fitted to "dis" by RANSAC: for a camera that moves before a still scene.

    Raises:
        UserError: an unknown method; OpenCV is not installed.
        ValueError: clips of another shape, or that are not finite.
    """
    if method not in FLOWS[1:]:
        raise UserError(f"--flow-by {method!r} is unknown: one of {', '.join(FLOWS[1:])}")
    if clips.ndim != 5 or 0 in clips.shape:
        raise ValueError(f"clips are (B, C, F, H, W), got {tuple(clips.shape)}")
    if not bool(clips.isfinite().all()):
        raise ValueError("the clips hold values that are not finite: they have no flow")
    cv2 = require("cv2", "flow", "the optical flow of clips")
    grey = ((clips.float().mean(1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    steps = [[_step(cv2, a, b, method) for a, b in pairwise(clip)] for clip in grey]
    flow = np.asarray(steps, dtype=np.float32).reshape(len(grey), grey.shape[1] - 1, *grey.shape[2:], 2)
    return torch.from_numpy(flow).permute(0, 1, 4, 2, 3).contiguous()


def _step(cv2: Any, first: np.ndarray, second: np.ndarray, method: str) -> np.ndarray:
    """The flow (H, W, 2) between two grey frames (H, W)."""
    height, width = first.shape
    if np.ptp(first) == 0 or np.array_equal(first, second):  # nothing moves, or nothing is seen to
        return np.zeros((height, width, 2), dtype=np.float32)
    scale = _ENLARGED if min(height, width) < _SMALL else 1
    pair = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for f in (first, second)]
    if method == "farneback":
        flow = cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 3, 13, 5, 5, 1.1, 0)
    else:
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*pair, None)
    flow = flow.reshape(height, scale, width, scale, 2).mean((1, 3)) / scale
    return _plane_motion(cv2, flow) if method == "homography" else flow


def _plane_motion(cv2: Any, flow: np.ndarray) -> np.ndarray:
    """The flow (H, W, 2) of the homography nearest to a flow."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    start = np.stack([x, y], -1).reshape(-1, 2)
    if len(start) < _POINTS:
        return flow
    matrix, _ = cv2.findHomography(start, start + flow.reshape(-1, 2), cv2.RANSAC, 1.0)
    if matrix is None:
        return flow
    return (cv2.perspectiveTransform(start[None], matrix)[0] - start).reshape(flow.shape).astype(np.float32)


def flow_of(clips: Clips, rows: Tensor | Sequence[int], method: str | None = None) -> Tensor:
    """The flow of clips of a set: float32 (B, F - 1, 2, H, W).

    Args:
        clips: the set.
        rows: which of its clips.
        method: one of `FLOWS`; None: exact for a bundled set, else "dis".

    Raises:
        UserError: as `estimate_flow`; "exact" for a set whose flow is not known.
    """
    known = isinstance(clips, MotionClips)
    if method == "exact" and not known:
        raise UserError(f"the exact flow of {clips.source} is not known: leave out --flow-by exact")
    if known and method in (None, "exact"):
        return clips.flow(rows)
    return estimate_flow(clips.batch(rows)[0], method or "dis")


class FlowFile:
    """The flow of each clip of a set, estimated when it is first asked for, and kept in a folder.

    The file holds a place for every clip, in half precision (a thousandth of a pixel), and a mark that is set after
    its flow is written: whatever is killed, a marked flow is whole. A file of other clips or another method is begun
    anew.

    Args:
        clips: the set.
        method: as of `flow_of`.
        folder: where to keep them; None keeps nothing.
    """

    def __init__(self, clips: Clips, method: str | None, folder: Path | None) -> None:
        self.clips, self.method = clips, method
        self.kept: tuple[np.memmap, np.memmap] | None = None
        if folder is not None and not (isinstance(clips, MotionClips) and method in (None, "exact")):
            self.kept = _opened(folder, clips, method or "dis")

    def __call__(self, rows: Tensor) -> Tensor:
        """The flows of clips by number, float32 (B, F - 1, 2, H, W)."""
        if self.kept is None:
            return flow_of(self.clips, rows, self.method)
        flows, marks = self.kept
        missing = [row for row in dict.fromkeys(rows.tolist()) if not marks[row]]
        if missing:
            flows[missing] = flow_of(self.clips, missing, self.method).half().numpy()
            flows.flush()
            marks[missing] = 1
        return torch.from_numpy(np.array(flows[rows.tolist()])).float()


def _opened(folder: Path, clips: Clips, method: str) -> tuple[np.memmap, np.memmap]:
    """Flows and marks of the set, as they are on disk or begun."""
    _, frames, height, width = clips.shape
    name = f"{method}-{clips.fingerprint}"
    shape = (len(clips), frames - 1, 2, height, width)
    try:
        make_folder(folder)
        for other in folder.glob("*-*.f*"):
            if not other.name.startswith(name):
                other.unlink()
        flows, marks = folder / f"{name}.f16", folder / f"{name}.flags"
        for file, size in ((flows, 2 * int(np.prod(shape))), (marks, len(clips))):
            if not file.is_file() or file.stat().st_size != size:
                with file.open("wb") as handle:  # sparse: takes what is written alone
                    handle.truncate(size)
        return (
            np.memmap(flows, np.float16, "r+", shape=shape),
            np.memmap(marks, np.uint8, "r+", shape=(len(clips),)),
        )
    except OSError as error:
        raise write_error(folder, error) from error


def read_flow(path: Path, frame: tuple[int, int, int]) -> Tensor:
    """The flows in a .npy file: float32 (N, F - 1, 2, H, W), N = 1 if it holds (F - 1, 2, H, W).

    Args:
        path: of the file.
        frame: (F, H, W) of the clips that they are for.

    Raises:
        UserError: no such file, no array of numbers, another shape, or values that are not finite.
    """
    frames, height, width = frame
    wanted = (frames - 1, 2, height, width)
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except OSError as error:
        raise UserError(f"{path} is no flow: give a .npy file of {wanted} ({error.strerror})") from None
    except (ValueError, EOFError):  # NumPy's own words are advice to unpickle it
        raise UserError(f"{path} is no flow: give a .npy file of {wanted}") from None
    shape = getattr(array, "shape", ())
    if shape[-4:] != wanted or len(shape) not in (4, 5) or not len(array):
        raise UserError(f"{path} has shape {shape}; a flow of these clips is {wanted}, or several of them")
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {array.dtype}; a flow is numbers, in pixels")
    flow = torch.from_numpy(np.array(array, dtype=np.float32)).reshape(-1, *wanted)
    if not bool(flow.isfinite().all()):
        raise UserError(f"{path} has values that are not finite")
    return flow
