"""The colours of video frames: YUV of any matrix, range and bit depth to 8-bit RGB and back, HDR to SDR.

The numbers of matrices, primaries and transfer functions are those of ITU-T H.273.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ornstein.data.decode import BadImage
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
    from av.video.frame import VideoFrame
else:
    av = deferred("av", "video", "a video")

__all__ = ["SDR", "Colour", "colour_of", "default_matrix", "from_rgb", "side_data", "to_rgb"]

UNKNOWN = 2
BT709, BT601, BT2020 = 1, 6, 9  # the numbers of matrices; BT709 and BT2020 are also those of primaries
_P3 = (11, 12)
_PQ, _HLG = 16, 18
LIMITED, FULL = 1, 2
_SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # swscale's own numbers of the matrices it knows
_LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}  # of R and B
# Without accurate rounding and full chroma interpolation swscale is 1.2 levels too dark; with them, 0 (mean error).
_FLAGS = 0x4 | 0x40000 | 0x2000  # bicubic, accurate rounding, full chroma interpolation
_XY = {  # the chromaticities of red, green and blue; white is D65 in all of them
    "709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)
WHITE = 203.0  # cd/m2: HDR's reference white, which becomes SDR's white (ITU-R BT.2408)
_GAMMA = 2.4  # of an SDR display (ITU-R BT.1886)
_PEAK = 1000.0  # cd/m2: the brightest pixel of an HDR video that does not state one, and of HLG
_CODES = 65536


@dataclass(frozen=True)
class Colour:
    """How the colours of a video are coded: numbers of H.273. `range`: 1 is limited (16 to 235), 2 is full.

    matrix: never unknown. peak: the brightest pixel of a PQ video in cd/m2.
    """

    matrix: int
    range: int = LIMITED
    primaries: int = UNKNOWN
    transfer: int = UNKNOWN
    peak: float = _PEAK

    @property
    def hdr(self) -> str | None:
        """The name of its HDR transfer function, None for SDR."""
        return {_PQ: "PQ", _HLG: "HLG"}.get(self.transfer)

    @property
    def wide(self) -> bool:
        """Whether its primaries are beyond those of BT.709."""
        stated = BT2020 if self.primaries == UNKNOWN and self.matrix in (9, 10) else self.primaries
        return stated == BT2020 or stated in _P3

    @property
    def shown(self) -> Colour:
        """What `to_rgb` gives: itself, or BT.709 if it is HDR or has wide primaries."""
        return SDR if self.hdr or self.wide else self


SDR = Colour(BT709, LIMITED, BT709, BT709)


def colour_of(frame: VideoFrame) -> Colour:
    """The colours of a frame as its file states them.

    An unstated matrix is BT.709 from 1280 columns or 577 rows on and BT.601 below, as players take it.

    Raises:
        BadImage: the matrix is one that cannot be decoded here.
    """
    rgb = frame.format.is_rgb
    matrix = frame.colorspace
    if rgb or matrix in (0, UNKNOWN, 3):
        matrix = default_matrix(frame.width, frame.height)
    elif matrix not in _SWSCALE:
        raise BadImage(f"its colours are coded by a matrix that cannot be decoded here (number {matrix} of H.273)")
    full = not rgb and (frame.color_range == FULL or frame.format.name.startswith("yuvj"))
    stated = Colour(matrix, FULL if full else LIMITED, _known(frame.color_primaries), _known(frame.color_trc))
    return replace(stated, peak=_peak(frame)) if stated.transfer == _PQ else stated


def default_matrix(width: int, height: int) -> int:
    """The matrix of a video that states none."""
    return BT709 if width >= 1280 or height > 576 else BT601


def to_rgb(frame: VideoFrame, colour: Colour, width: int | None = None) -> np.ndarray:
    """The frame as uint8 (H, W, 3), at most half a level off; optionally with another width.

    Transparency is laid over white. HDR is tone-mapped (ITU-R BT.2390, reference white 203 cd/m2 becomes white), and
    primaries wider than BT.709's are converted to them; both are then in the colours of `SDR`.
    """
    alpha = any(part.is_alpha for part in frame.format.components) or frame.format.name == "pal8"
    # Grey without a stated range is full, for swscale as for players.
    stated = 0 if frame.format.is_rgb or frame.format.name.startswith("gray") else colour.range
    deep = bool(colour.hdr or colour.wide)
    array = None
    if alpha or not deep:
        array = _scaled(frame, colour, width, "rgba" if alpha else "rgb24", stated, FULL).to_ndarray()
    if not deep:
        assert array is not None
        rgb = array[..., :3]
    elif frame.format.is_rgb:
        codes = _scaled(frame, colour, width, "rgb48le", stated, FULL).to_ndarray().reshape(-1, 3).T
        rgb = _to_sdr(codes, colour).reshape(frame.height, -1, 3)
    else:
        codes = _deep(_scaled(frame, colour, width, "yuv444p16le", stated, stated), colour)
        rgb = _to_sdr(codes, colour).reshape(frame.height, -1, 3)
    if array is None or not alpha:
        return np.ascontiguousarray(rgb)
    share = array[..., 3:].astype(np.float32) / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


def _scaled(frame: VideoFrame, colour: Colour, width: int | None, form: str, range_: int, target: int) -> VideoFrame:
    matrix = _SWSCALE[colour.matrix]
    return frame.reformat(
        width=width,
        format=form,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=range_,
        dst_color_range=target,
        interpolation=_FLAGS,
    )


def _deep(frame: VideoFrame, colour: Colour) -> np.ndarray:
    """A frame in yuv444p16 as uint16 RGB (3, H W). (swscale's own 16-bit RGB is up to 0.4 % too dark.)"""
    rows, low = _matrix(colour.matrix, colour.range)
    step = 256 if colour.range == LIMITED else 65535 / 255  # of an 8-bit level
    back = np.linalg.inv(rows.astype(np.float64)) * (65535 / 255)
    yuv = frame.to_ndarray().reshape(-1, 3).T.astype(np.float32)
    rgb = (back / step).astype(np.float32) @ yuv
    rgb += (0.5 - back @ [low, 128, 128]).astype(np.float32)[:, None]  # half a code: the conversion below cuts off
    return np.clip(rgb, 0, 65535, out=rgb).astype(np.uint16)


def from_rgb(array: np.ndarray, colour: Colour) -> VideoFrame:
    """A frame in yuv420p of uint8 (H, W, 3), both sides even, at most half a level off; its colours are stated.

    The matrix is multiplied out here: swscale is up to a level off for full range.
    """
    rows, low = _matrix(colour.matrix, colour.range)
    height, width = array.shape[:2]
    y, u, v = np.moveaxis(array.reshape(-1, 3).astype(np.float32) @ rows.T, 1, 0).reshape(3, height, width)
    # Each colour sample lies on the left one of two columns, between two rows.
    halved = []
    for plane in (u, v):
        two = plane[0::2] + plane[1::2]
        left = np.concatenate([two[:, :1], two[:, 1:-1:2]], 1)
        halved.append((left + 2 * two[:, 0::2] + two[:, 1::2]) / 8 + 128)
    planes = [np.rint(plane).clip(0, 255).astype(np.uint8) for plane in (y + low, *halved)]
    packed = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(height * 3 // 2, width)
    frame = av.VideoFrame.from_ndarray(packed, format="yuv420p")
    frame.colorspace, frame.color_range = colour.matrix, colour.range
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    return frame


@lru_cache(maxsize=8)
def _matrix(number: int, range_: int) -> tuple[np.ndarray, int]:
    """(rows (3, 3) from RGB in 0 to 255 to Y, U, V; black's Y)."""
    kr, kb = _LUMA.get(number, (0.2627, 0.0593))
    luma = np.array([kr, 1 - kr - kb, kb])
    rows = np.stack([luma, (np.array([0, 0, 1]) - luma) / (2 - 2 * kb), (np.array([1, 0, 0]) - luma) / (2 - 2 * kr)])
    scale = np.array([1, 1, 1]) if range_ == FULL else np.array([219, 224, 224]) / 255
    return (rows * scale[:, None]).astype(np.float32), 0 if range_ == FULL else 16


def _known(number: int) -> int:
    return UNKNOWN if number in (0, 3) else int(number)


def _peak(frame: VideoFrame) -> float:
    """The brightest pixel that the frame's content light level states, in cd/m2."""
    stated = side_data(frame, "CONTENT_LIGHT_LEVEL")
    brightest = int(np.frombuffer(stated[:4], np.uint32)[0]) if stated else 0
    return float(min(max(brightest, WHITE), 10_000)) if brightest else _PEAK


def side_data(frame: VideoFrame, name: str) -> bytes | None:
    """One kind of what a file says about a frame beside its pixels; None if it does not.

    A frame that was asked is part of a cycle and stays in memory until that is collected: ask one frame of a video.
    """
    entries: Any = frame.side_data
    return next((bytes(each) for each in entries if each.type.name == name), None)


# ---- HDR and wide primaries to SDR


def _to_sdr(codes: np.ndarray, colour: Colour) -> np.ndarray:
    """uint16 RGB (3, N) in the video's own transfer function to uint8 (N, 3) in that of BT.709."""
    if colour.hdr == "PQ":
        light = _pq_light()[codes]
    elif colour.hdr == "HLG":
        light = _hlg_light()[codes]
        luma = np.array([0.2627, 0.6780, 0.0593], np.float32) @ light
        light *= np.float32(_PEAK) * np.maximum(luma, 1e-6) ** np.float32(0.2)  # gamma 1.2 of 1,000 cd/m2
    else:
        light = _sdr_light()[codes]
    if colour.hdr:
        peak = colour.peak if colour.hdr == "PQ" else _PEAK
        index = np.sqrt(light.max(0) * np.float32(1 / 10_000)) * np.float32(_CODES - 1)
        light *= _gains(peak)[np.minimum(index, _CODES - 1).astype(np.uint16)]
    target = _conversion("P3" if colour.primaries in _P3 else "2020") @ light
    np.sqrt(np.clip(target, 0, 1, out=target), out=target)
    target *= np.float32(_CODES - 1)
    return _encoded()[target.astype(np.uint16)].T


def _pq(light: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: the signal in [0, 1] of light in cd/m2."""
    power = (light / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


@lru_cache(maxsize=1)
def _pq_light() -> np.ndarray:
    """Light in cd/m2 of every 16-bit PQ code."""
    power = (np.arange(_CODES) / (_CODES - 1)) ** (32 / 2523)
    ratio = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
    return (10_000 * ratio ** (16384 / 2610)).astype(np.float32)


@lru_cache(maxsize=1)
def _hlg_light() -> np.ndarray:
    """Scene light in [0, 1] of every 16-bit HLG code (ITU-R BT.2100)."""
    e = np.arange(_CODES) / (_CODES - 1)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(e <= 0.5, e**2 / 3, (np.exp((e - c) / a) + b) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _sdr_light() -> np.ndarray:
    return ((np.arange(_CODES) / (_CODES - 1)) ** _GAMMA).astype(np.float32)


@lru_cache(maxsize=4)
def _gains(peak: float) -> np.ndarray:
    """What light is multiplied by, as a share of SDR's white, by the root of its brightest channel over 10,000 cd/m2.

    The curve of ITU-R BT.2390, section 5.4.1: below the knee nothing is changed but the unit.
    """
    light = 10_000 * (np.arange(_CODES) / (_CODES - 1)) ** 2
    light[0] = light[1]
    top = float(_pq(np.array(peak)))
    signal = np.minimum(_pq(light) / top, 1)
    most = float(_pq(np.array(WHITE))) / top
    knee = 1.5 * most - 0.5
    t = (signal - knee) / (1 - knee) if knee < 1 else np.zeros_like(signal)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    mapped = np.where(signal < knee, signal, curve) * top
    power = np.maximum(mapped, 0) ** (32 / 2523)
    out = 10_000 * (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)
    return (out / light / WHITE).astype(np.float32)


@lru_cache(maxsize=1)
def _encoded() -> np.ndarray:
    """The 8-bit code of the root of light."""
    return np.rint(255 * (np.arange(_CODES) / (_CODES - 1)) ** (2 / _GAMMA)).astype(np.uint8)


@lru_cache(maxsize=2)
def _conversion(name: str) -> np.ndarray:
    """From linear RGB of these primaries to that of BT.709's: float32 (3, 3)."""
    return (np.linalg.inv(_to_xyz("709")) @ _to_xyz(name)).astype(np.float32)


def _to_xyz(name: str) -> np.ndarray:
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in _XY[name]]).T
    white = np.array([_D65[0] / _D65[1], 1, (1 - sum(_D65)) / _D65[1]])
    return columns * np.linalg.solve(columns, white)
