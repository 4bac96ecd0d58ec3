"""The training objective of a face swap: rebuild a face from its blur and a source; then whose face it became."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import ornstein as orn
from ornstein import checkpoint
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.faces.conditions import CHANNELS, SHAPED, scene
from ornstein.faces.identity import IDENTITY, Recognises, augmented, fingerprint, likeness
from ornstein.faces.nets import FaceUNet
from ornstein.faces.nets.unet import blurred
from ornstein.faces.photos import Pairs, Photos
from ornstein.objectives import low_discrepancy
from ornstein.process import Prediction
from ornstein.settings import check, setting
from ornstein.training import Task

__all__ = ["FaceSettings", "FaceTask", "face_denoiser", "relit"]

_CLEAREST, _NOISIEST = 0.3, 0.85  # times at which the model's own swaps are scored


@dataclass(frozen=True)
class FaceSettings:
    """Settings of the training objective, beside the trainer's own.

    Raises:
        UserError: a value out of range.
    """

    dropout: float = setting(
        0.15, "Probability that a pair is trained without its identity, for guidance.", minimum=0, maximum=1
    )
    outside: float = setting(0.05, "Weight of the pixels outside the mask, against 1 inside.", minimum=0)
    # At 0 times are uniform; at 2, for v and a cosine schedule, a time counts nearly by its error of x0: whose face it
    # is and how it is turned is decided at high noise.
    noise: float = setting(1.5, "Times have the density (1 + noise) t^noise.", minimum=0)
    tint: float = setting(
        0.05, "Standard deviation of a shift of the blurred face's colours, which hides whose they are.", minimum=0
    )
    light: float = setting(
        0.2, "Standard deviation of random changes of the source's colours and light: both are the target's.", minimum=0
    )
    identity: float = setting(0.0, "Weight of the identity term, 1 - cosine, on pairs with a known truth.", minimum=0)
    swap: float = setting(0.05, "Weight of the identity term on swaps of two people.", minimum=0)
    swaps: float = setting(0.25, "Share of the batch that is swapped so.", minimum=0, maximum=1)
    colour: float = setting(1.0, "Weight of the squared error of a swap's 8x8 blur against the target's.", minimum=0)
    begins: float = setting(0.7, "Fraction of the training after which the identity terms begin.", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        check(self)


def face_denoiser(size: int, identity: int, preset: str = "s", shaped: bool = True) -> Denoiser:
    """An untrained swap model for crops of `size` pixels and identity vectors of that length (v-prediction, cosine).

    shaped: it is shown the points of `ornstein.faces.shape`, and not five landmarks alone.
    """
    net = FaceUNet.preset(preset, size=size, scene=SHAPED if shaped else CHANNELS, identity=identity)
    return Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=SampleSpec((3, size, size)))


class FaceTask(Task[Denoiser]):
    """Training of a swap on pairs of photos, with identities as `recogniser` normalises them (E10, and E8 for v).

    On each pair the squared error of v, larger inside the mask than outside. From `settings.begins` on also whose face
    the prediction is, by the recogniser: on the pairs themselves at medium noise, weighted by a^2; and on a part of the
    batch that gets another row's source, where no truth is known. There the model first predicts from pure noise, the
    prediction is noised to a time in (0.3, 0.85), and its next prediction is scored: the model's own swap and not
    somebody else's photo. The recogniser sees it moved, blurred and noisy. It is not trained.

    Source: S0; Kim et al. 2022 (DiffFace, arXiv:2212.13344), section 3.2, the identity of the predicted x0;
    Clark et al. 2023 (DRaFT, arXiv:2309.17400), the gradient of a reward through the last steps alone.
    """

    def __init__(self, denoiser: Denoiser, recogniser: Recognises, photos: Photos, settings: FaceSettings) -> None:
        super().__init__(denoiser, [denoiser.net, recogniser])
        self.photos, self.settings = photos, settings
        self.recogniser = recogniser.eval().requires_grad_(False)

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert labels is not None
        settings, device = self.settings, x0.device
        pairs = self.photos.pairs(labels.cpu(), draw).to(device)
        n = len(x0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, device=draw.device).to(device)

        t = low_discrepancy(n, draw).float().to(device) ** (1 / (1 + settings.noise))
        dropped = torch.rand(n, generator=draw, device=draw.device).to(device) < settings.dropout
        tint = settings.tint * normal(n, 3, 1, 1)
        shown = scene(pairs.target, pairs.mask, pairs.landmarks, tint, points=pairs.points)
        z = normal(*pairs.truth.shape)
        x_t = self.model.process.add_noise(pairs.truth, t, z)
        known = pairs.source.known(pairs.landmarks, points=pairs.points)
        known["appearance"] = relit(known["appearance"], settings.light * normal(n, 9))
        guess = self.model(x_t, t, scene=shown, **known, dropped=dropped)
        truth = Prediction(self.model.process, x_t, t, pairs.truth, self.model.process.noise.color(z))
        weight = torch.lerp(torch.full_like(pairs.mask, settings.outside), torch.ones_like(pairs.mask), pairs.mask)
        error = (weight * (guess.v - truth.v).square()).mean() / weight.mean()
        if progress < settings.begins:
            zero = error.new_zeros(())
            return error, {"error": error, "unlike": zero, "swap_unlike": zero}
        unlike = error.new_zeros(())
        if settings.identity:
            # a fifth of the rows, with middling noise: less of it hides nothing, under more there is nothing to be seen
            some = t.argsort()[2 * n // 5 : n - 2 * n // 5]
            trust = self.model.process.coefficients(t, x_t)[0].flatten().square() * ~dropped
            unlike = (trust[some] * self.unlike(guess.x0[some], pairs.select(some), draw)).mean()
        swap_unlike, colour = self.swapped(pairs, shown, draw)
        total = error + settings.identity * unlike + settings.swap * swap_unlike + settings.colour * colour
        return total, {"error": error, "unlike": unlike, "swap_unlike": swap_unlike}

    def unlike(self, x0: Tensor, pairs: Pairs, draw: torch.Generator) -> Tensor:
        """1 - cosine of whose face x0 is in the target picture and the pairs' identity, (B,)."""
        picture = torch.lerp(pairs.target, x0, pairs.mask)
        seen = augmented(picture, draw, 0.5, mirror=False)
        return 1 - likeness(self.recogniser(seen, pairs.landmarks), pairs.source.identity)

    def swapped(self, pairs: Pairs, shown: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """On the first rows, with the source of the one before: 1 - cosine, and the squared error of the 8x8 blur."""
        n = round(self.settings.swaps * len(shown))
        if n == 0 or not (self.settings.swap or self.settings.colour):
            return shown.new_zeros(()), shown.new_zeros(())
        some = replace(pairs, source=pairs.source.roll(1)).select(torch.arange(n, device=shown.device))
        process = self.model.process
        known = {"scene": shown[:n]} | some.source.known(some.landmarks, points=some.points)

        def noise() -> Tensor:
            return torch.randn(some.target.shape, generator=draw, device=draw.device).to(shown.device)

        with torch.no_grad():
            first = self.model(
                process.prior(tuple(some.target.shape), device=shown.device).sample(noise()), 1.0, **known
            ).x0
        first = torch.lerp(some.target, first.clamp(-1, 1), some.mask)
        t = torch.rand(n, generator=draw, device=draw.device).to(shown.device) * (_NOISIEST - _CLEAREST) + _CLEAREST
        guess = self.model(process.add_noise(first, t, noise()), t, **known).x0
        picture = torch.lerp(some.target, guess, some.mask)
        return self.unlike(guess, some, draw).mean(), F.mse_loss(blurred(picture), blurred(some.target))

    def config(self) -> dict[str, Any]:
        faces = asdict(self.settings) | {"recogniser": fingerprint(self.recogniser)}
        return self.model.to_config() | {"faces": faces}

    def save(self, model: Denoiser, out: Path, extra: dict[str, Any]) -> None:
        self.recogniser.save(out / IDENTITY)
        checkpoint.save(model, out, extra | {"faces": asdict(self.settings)})


def relit(shown: Tensor, by: Tensor) -> Tensor:
    """A source's `appearance` (B, 4, H, W) in other colours and another light.

    by: (B, 9), with 0 for no change: the logarithm of a gain of each channel and of all of them, a shift of each
    channel, and the slopes of the light to the right and downwards, from the middle to the edge.
    """
    height, width = shown.shape[2:]
    y, x = (torch.linspace(-1, 1, side, device=shown.device) for side in (height, width))
    by = by[..., None, None]
    light = by[:, 4:7] + by[:, 7:8] * x + by[:, 8:9] * y[:, None]
    colours = shown[:, :3] * (by[:, :3] / 2 + by[:, 3:4]).exp() + light * shown[:, 3:]
    return torch.cat([colours, shown[:, 3:]], 1)
