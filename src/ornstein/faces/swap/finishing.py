"""The two small networks that finish a swap, and how they are trained: what covers a face, and finer detail.

Both learn from rendered faces, whose truth is known, and from the photographs that scikit-learn ships.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.faces.align import alignment, mask, warp
from ornstein.faces.swap.occluders import covered, disguised, textures
from ornstein.faces.world.parameters import IDENTITY
from ornstein.faces.world.population import FaceWorld
from ornstein.faces.world.views import render
from ornstein.store import atomic_save_tensors, load_weights

__all__ = [
    "FOLDER",
    "SIDE",
    "DetailNet",
    "OcclusionNet",
    "aligned_faces",
    "load",
    "save",
    "train_detail",
    "train_occlusion",
]

FOLDER = "finish"
"""Of a run directory: networks that are used instead of the shipped ones."""
SIDE = 128
"""Pixels a side of the crops that both networks are trained on."""
_SHIPPED = Path(__file__).parent / "weights"
_RATE, _DECAY_FROM = 2e-3, 0.6
_BLOCK = 4
_RENDERED = 160  # pixels a side: an aligned crop shows a part of the picture


class OcclusionNet(nn.Module):
    """From an aligned crop (B, 3, S, S) in [0, 1] to the logits (B, 1, S, S) that a pixel shows the face itself.

    A U-Net of three levels on blocks of 4x4 pixels. S is a multiple of 16.
    """

    def __init__(self, widths: Sequence[int] = (32, 48, 64)) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3 * _BLOCK**2 + 2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(a, b, 2) for a, b in itertools.pairwise(widths))
        self.middle = _Block(widths[-1], widths[-1])
        self.up = nn.ModuleList(_Block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.leave = nn.Conv2d(widths[0], _BLOCK**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1] // _BLOCK
        along = torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device)
        place = torch.stack(torch.meshgrid(along, along, indexing="xy")).expand(len(x), -1, -1, -1)
        h = self.enter(torch.cat([F.pixel_unshuffle(2 * x - 1, _BLOCK), place], 1))
        kept = []
        for block in self.down:
            kept.append(h)
            h = block(h)
        h = self.middle(h)
        for block, before in zip(self.up, reversed(kept), strict=True):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0, mode="nearest"), before], 1))
        return F.pixel_shuffle(self.leave(h), _BLOCK)


class _Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(ins, outs, 3, stride, 1), nn.GroupNorm(8, outs)
        self.second, self.norm2 = nn.Conv2d(outs, outs, 3, padding=1), nn.GroupNorm(8, outs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.first(x)))
        return h + F.silu(self.norm2(self.second(h)))


class DetailNet(nn.Module):
    """Twice as many pixels a side: (B, 3, H, W) in [0, 1] to (B, 3, 2H, 2W), a correction of the bicubic enlargement.

    Fully convolutional: a tile is a part of the whole where the borders are `REACH` pixels away.
    """

    REACH = 10

    def __init__(self, width: int = 24, depth: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1, padding_mode="replicate")
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            )
            for _ in range(depth)
        )
        self.leave = nn.Conv2d(width, 12, 3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x - 0.5)
        for block in self.body:
            h = h + block(h)
        plain = F.interpolate(x, scale_factor=2.0, mode="bicubic")
        return plain + F.pixel_shuffle(self.leave(h), 2)


_NETS: dict[str, type[OcclusionNet] | type[DetailNet]] = {"occlusion": OcclusionNet, "detail": DetailNet}


def load(name: str, run: Path | None = None) -> nn.Module:
    """The network "occlusion" or "detail": that of a run directory if it has one, else the shipped one.

    Raises:
        UserError: the file is damaged or of another network.
    """
    own = None if run is None else run / FOLDER / f"{name}.safetensors"
    path = own if own is not None and own.is_file() else _SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(f"there is no network {path}: `ornstein faces finish` trains it")
    net = _NETS[name]()
    load_weights(net, path)
    return net.eval().requires_grad_(False)


def aligned_faces(count: int, seed: int, size: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """Rendered faces without glasses as a swap cuts them out.

    Returns:
        Crops (N, 3, S, S) in [0, 1], where they show the face (N, 1, S, S), and five landmarks (N, 5, 2) in pixels.
    """
    world = FaceWorld(count, 1, _RENDERED, seed)
    rows = torch.arange(count)
    crops, masks, points = [], [], []
    for low in range(0, count, 8):
        part = rows[low : low + 8]
        identity = world.identity(part)
        identity[:, IDENTITY.index("glasses")] = 0
        made = render(identity, world.attributes(part), _RENDERED)
        for image, shown, landmarks in zip(made.image, made.mask, made.landmarks, strict=True):
            place = alignment(landmarks[:5].double(), size)
            crops.append((warp((image + 1) / 2, place, (size, size))).clamp(0, 1))
            masks.append(warp(shown, place, (size, size), "zero").clamp(0, 1))
            points.append(place(landmarks[:5].double()).float())
    return torch.stack(crops), torch.stack(masks), torch.stack(points)


def varied(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """The pictures (B, 3, S, S) with random colours, contrast, sharpness and grain, as cameras differ."""
    b = len(pictures)

    def u(*shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=draw)

    size = pictures.shape[-1]
    low = int(size * (0.35 + 0.65 * float(torch.rand((), generator=draw))))
    if float(torch.rand((), generator=draw)) < 0.6:
        small = F.interpolate(pictures, (low, low), mode="bilinear", antialias=True)
        pictures = F.interpolate(small, (size, size), mode="bicubic")
    gain, shift = 1 + 0.25 * (2 * u(3, 1, 1) - 1), 0.1 * (2 * u(1, 1, 1) - 1)
    grey = pictures.mean(1, keepdim=True)
    pictures = torch.lerp(grey, pictures, 0.3 + 1.0 * u(1, 1, 1))
    pictures = pictures.clamp(1e-3, 1) ** (0.7 + 0.7 * u(1, 1, 1)) * gain + shift
    return (pictures + 0.04 * u(1, 1, 1) * torch.randn(pictures.shape, generator=draw)).clamp(0, 1)


Tell = Callable[[int, float, float], object]


def train_occlusion(
    minutes: float, faces: int = 1024, batch: int = 12, seed: int = 0, tell: Tell = lambda step, loss, done: None
) -> OcclusionNet:
    """Train the network that finds what covers a face, on rendered faces with things painted over them.

    Args:
        minutes: of processor time, rendering included.
        faces: rendered people.
        batch: faces a step.
        seed: of everything random.
        tell: called as tell(step, loss, fraction done).
    """
    began = time.process_time()
    crops, shown, points = aligned_faces(faces, seed)
    hull = F.max_pool2d((mask(points, SIDE) > 0).float(), 9, 1, 4)
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = OcclusionNet()

    def loss() -> Tensor:
        rows = torch.randint(faces, (batch,), generator=draw)
        face, seen, where, inside = crops[rows], shown[rows], points[rows], hull[rows]
        if float(torch.rand((), generator=draw)) < 0.5:
            face, seen, inside = face.flip(3), seen.flip(3), inside.flip(3)
            where = torch.stack([SIDE - 1 - where[..., 0], where[..., 1]], -1)[:, [2, 3, 0, 1, 4]]
        face = disguised(varied(face, draw), where, draw)
        picture, left = covered(face, where, draw)
        truth = seen * left
        each = F.binary_cross_entropy_with_logits(net(varied(picture, draw)), truth, reduction="none")
        return (each * inside).sum() / inside.sum()

    _train(net, loss, began, 60 * minutes, tell)
    return net.eval()


def train_detail(
    minutes: float, faces: int = 256, batch: int = 16, seed: int = 0, tell: Tell = lambda step, loss, done: None
) -> DetailNet:
    """Train the network that doubles the resolution, on pieces of rendered faces and of two photographs.

    Args: see `train_occlusion`.
    """
    began = time.process_time()
    crops, _, _ = aligned_faces(faces, seed + 1)
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = DetailNet()
    side = 64

    def piece(image: Tensor) -> Tensor:
        top, left = (int(torch.randint(n - side + 1, (), generator=draw)) for n in image.shape[1:])
        return image[:, top : top + side, left : left + side]

    pictures = [F.interpolate(image[None], scale_factor=0.7, mode="area")[0] for image in textures()]
    pictures += list(textures())

    def loss() -> Tensor:
        rows = torch.randint(faces, (batch // 2,), generator=draw).tolist()
        fine = [piece(crops[row]) for row in rows]
        fine += [piece(pictures[row % len(pictures)]) for row in rows]
        truth = torch.stack(fine)
        if float(torch.rand((), generator=draw)) < 0.5:
            truth = truth.flip(3)
        coarse = F.interpolate(truth, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
        noise = 0.012 * torch.rand(len(coarse), 1, 1, 1, generator=draw)
        coarse = coarse + noise * torch.randn(coarse.shape, generator=draw)
        return (net(coarse) - truth).abs().mean()

    _train(net, loss, began, 60 * minutes, tell)
    return net.eval()


def _train(net: nn.Module, loss: Callable[[], Tensor], began: float, seconds: float, tell: Tell) -> None:
    """Adam until the processor time is spent; the rate falls to 0 over the last part, and the mean of it is kept."""
    optimiser = torch.optim.Adam(net.parameters(), _RATE)
    step, mean = 0, 0.0
    while (done := (time.process_time() - began) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(1.0, (1 - done) / (1 - _DECAY_FROM), (step + 1) / 50)
        optimiser.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimiser.step()
        step += 1
        mean = float(value.detach()) if step == 1 else mean + 0.02 * (float(value.detach()) - mean)
        tell(step, mean, done)


def save(net: nn.Module, path: Path) -> None:
    """Write the weights, in float16: 1e-3 of a weight is nothing to these networks."""
    atomic_save_tensors(path, {name: value.half() for name, value in net.state_dict().items()}, {})
