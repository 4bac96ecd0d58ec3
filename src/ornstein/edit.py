"""Edits of pictures and clips: holes filled, damage undone, colours, variations, and paths between two pictures.

Values are those of the model, in [-1, 1]: y and x are (B, *), and each gives `n` answers, those of picture b in the
rows b n to b n + n - 1. What decides a sample (steps, solver, seed, guidance, cond, batch, ...) is as for
`ornstein.sample`. The default method is moment matching, see `ornstein.inverse`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.guidance import ClassifierFree
from ornstein.inverse import METHODS, Decoded, Grey, Mask, Operator, downsampling, invert, repaint, twisted
from ornstein.noise import SingularCovarianceError
from ornstein.randomness import normal
from ornstein.request import SampleRequest
from ornstein.sampling import State, draw
from ornstein.wrapper import distilled_of, module_of, rows_of

__all__ = [
    "METHODS_OF_EDITS", "change", "colourise", "coverage", "inpaint", "interpolate", "restore", "sdedit", "spread",
    "upscale",
]  # fmt: skip

METHODS_OF_EDITS = (*METHODS, "repaint", "twisted")
"""Names for `method`."""

_GUIDED_STEPS = 100  # of the ancestral sampler, for methods that leave the covariance out
_START = 2**20  # the number of the draw of noise that an edit starts from

Callback = Callable[[State], object]


def inpaint(
    d: Denoises, y: Tensor, mask: Tensor, n: int = 1, method: str = "moments", noise_std: float = 0.0, **options: Any
) -> Tensor:
    """Fill what is masked: draws from p(x_0 | the known part of y).

    Args:
        d: the model.
        y: pictures or clips, (B, *); the values under the mask do not matter.
        mask: 1 where values are to be made and 0 where y is kept, (H, W), a sample's shape, or (B, *); sizes of 1
            stand for all, so that a clip (B, C, F, H, W) has its own mask for each frame or one for all.
        n: answers for each picture.
        method: a name of `METHODS_OF_EDITS`.
        noise_std: of the known values; 0 keeps them exactly.
        **options: see `restore`.

    Returns:
        (B n, *).

    Raises:
        ValueError: a mask of another size, or an argument as in `restore`.
    """
    hidden = torch.as_tensor(mask, device=y.device)
    rows = hidden.ndim == y.ndim and len(hidden) > 1
    if rows and len(hidden) != len(y):
        raise ValueError(f"there are {len(hidden)} masks for {len(y)} pictures")
    if rows:  # an operator of its own for each picture
        first = options.pop("first", 0)
        each = zip(y.split(1), hidden.split(1), strict=True)
        made = [inpaint(d, a, m, n, method, noise_std, first=first + i * n, **options) for i, (a, m) in enumerate(each)]
        return torch.cat(made)
    A = Mask(1 - hidden.to(torch.float32), y.shape[1:])
    y = torch.where(A.known.to(y.device), y, 0.0)  # what is hidden may be anything, NaN too
    known = A.known.to(y.device).expand(1, *y.shape[1:])
    if bool(known.all()) and noise_std == 0:
        warnings.warn("the mask hides nothing: the pictures are returned as they are", UserWarning, stacklevel=2)
        return y.repeat_interleave(n, 0)
    if not bool(known.any()):
        warnings.warn("the mask hides everything: these are samples of the model", UserWarning, stacklevel=2)
    made = restore(d, A, y, noise_std, n, method, **options)
    return torch.where(known, y.repeat_interleave(n, 0).to(made), made) if noise_std == 0 else made


def restore(
    d: Denoises,
    A: Operator,
    y: Tensor,
    noise_std: float,
    n: int = 1,
    method: str = "moments",
    particles: int = 16,
    iterations: int | None = None,
    cond: dict[str, Any] | None = None,
    guidance: float | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """Draws from p(x_0 | y) for y = A x_0 + noise_std n (E39).

    Args:
        d: the model.
        A: what was measured, see `ornstein.inverse.operators`; for a model of latents, of the picture or of the latent.
        y: measurements, (B, *).
        noise_std: standard deviation of the noise in y.
        n: answers for each measurement.
        method: "moments" (recommended), "twisted" (particles: exact as they grow), "repaint", or a name of
            `ornstein.inverse.METHODS`.
        particles: of "twisted", for each answer.
        iterations: of conjugate gradients, for "moments" and "twisted".
        cond: conditions of the model, with one row for each measurement.
        guidance: scale of classifier-free guidance of the prior.
        callback, **options: as for `ornstein.sample`.

    Returns:
        (B n, *shape), the model's samples: latents of a model of latents.

    Raises:
        ValueError: y does not fit the operator or is not finite, the model does not make samples of its shape, an
            unknown method, or one that needs the eigenvalues of an operator that has none; a distilled model.
    """
    if n < 1:
        raise ValueError(f"there is at least one answer, got {n}")
    if method not in METHODS_OF_EDITS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS_OF_EDITS)}")
    if distilled_of(d) is not None:
        raise ValueError("a distilled model has no E[x_0 | x_t] to condition: use its teacher")
    A = _of_samples(d, A)
    _check_shape(d, A.shape)
    A.check(y)
    plain = method in ("ddrm", "ddnm", "diffpir", "pigdm", "repaint")
    if plain and not A.diagonalisable:
        raise ValueError(f"{method} needs the eigenvalues of the operator, which {type(A).__name__} has not: moments")
    kind = METHODS[{"repaint": "ddnm", "twisted": "moments"}.get(method, method)]
    settings = {} if iterations is None or method not in ("moments", "twisted") else {"iterations": iterations}
    posterior = kind(_guided(d, guidance), A, None, noise_std, **settings)
    options = _given(options)
    if method == "twisted":
        options.setdefault("steps", _GUIDED_STEPS)
        options["solver"] = partial(twisted, particles=particles)
    elif method == "repaint":
        options["solver"] = repaint
    elif method != "moments":
        options = {"solver": "ddpm", "steps": _GUIDED_STEPS} | options
    rows = _repeated(cond, len(y), n) | {"y": y.repeat_interleave(n, 0)}
    return draw(posterior, (len(y) * n, *A.shape), SampleRequest(**options), rows, callback=callback)


def upscale(
    d: Denoises,
    y: Tensor,
    noise_std: float = 0.0,
    n: int = 1,
    kind: str = "area",
    method: str = "moments",
    **options: Any,
) -> Tensor:
    """Pictures (B, C, h, w) as large as the model's: draws of what `kind` of downsampling would make y of.

    Raises:
        ValueError: the model's side is no multiple of y's, or as `restore`.
    """
    shape = _picture_of(d)
    if y.ndim != len(shape) + 1 or shape[-1] % y.shape[-1] or shape[-1] // y.shape[-1] * y.shape[-2] != shape[-2]:
        raise ValueError(f"the model makes pictures of {shape}: {tuple(y.shape[1:])} is no whole fraction of them")
    return restore(d, downsampling(shape[-1] // y.shape[-1], shape, kind), y, noise_std, n, method, **options)


def colourise(
    d: Denoises, y: Tensor, noise_std: float = 0.0, n: int = 1, method: str = "moments", **options: Any
) -> Tensor:
    """Colours for grey pictures (B, 1, H, W): draws of pictures whose luma is y.

    Raises:
        ValueError: the model has no three channels, or as `restore`.
    """
    return restore(d, Grey(_picture_of(d)), y, noise_std, n, method, **options)


def sdedit(
    d: Denoises,
    x: Tensor,
    strength: float,
    n: int = 1,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
    guidance: float | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """Variations of pictures x (B, *): noise up to t = strength, and the model's way back (Meng et al. 2022, SDEdit).

    Args:
        strength: in (0, 1]: little keeps the picture, 1 keeps nothing of it.

    Returns:
        (B n, *).

    Raises:
        ValueError: a strength outside (0, 1], a picture that is not finite or not of the model's shape.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"a strength lies in (0, 1], got {strength}")
    _check_pictures(d, x)
    cond, x = _repeated(cond, len(x), n), x.repeat_interleave(n, 0)
    z = normal(tuple(x.shape), seed, torch.arange(len(x)), _START, dtype=x.dtype, device=x.device)
    start = d.process.add_noise(x, strength, z)
    request = SampleRequest(seed=seed, times=(strength, 0.0), guidance=guidance, **_given(options))
    return draw(d, tuple(x.shape), request, cond, start, callback)


def interpolate(
    d: Denoises,
    a: Tensor,
    b: Tensor,
    n: int = 9,
    steps: int = 20,
    cond: dict[str, Any] | None = None,
    tolerance: float = 1e-4,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """A path of n pictures from a to b, each (1, *): both are inverted exactly, and their noises interpolated.

    The noises are turned into one another on the ellipsoid of C (slerp in R^-1 x), so that each picture on the way
    starts from noise as likely as theirs. The first and the last are a and b to the tolerance of the inversion.

    Returns:
        (n, *).

    Raises:
        ValueError: fewer than 2 pictures, or ones that are not finite or not of the model's shape.
    """
    if n < 2:
        raise ValueError(f"a path has at least its two ends, got n = {n}")
    for x in (a, b):
        _check_pictures(d, x)
    solver = options.pop("solver", None) or "ddim"
    ends = torch.cat([a, b])
    found = _inverted(d, ends, solver, steps, _repeated(cond, 1, 2), tolerance)
    path = _slerp(d, found, n).to(a.dtype)
    request = SampleRequest(solver=solver, steps=steps, **_given(options))
    return draw(d, tuple(path.shape), request, _repeated(cond, 1, n), path, callback)


def change(
    d: Denoises,
    x: Tensor,
    cond: dict[str, Any],
    to: dict[str, Any],
    steps: int = 20,
    guidance: float | None = None,
    tolerance: float = 1e-4,
    **options: Any,
) -> Tensor:
    """Pictures x (B, *) under other conditions: inverted exactly with `cond`, and sampled with `to` (E25).

    With to = cond and no guidance they come back as they are, to the tolerance of the inversion.
    """
    _check_pictures(d, x)
    solver = options.pop("solver", None) or "ddim"
    found = _inverted(d, x, solver, steps, cond, tolerance)
    request = SampleRequest(solver=solver, steps=steps, guidance=guidance, **_given(options))
    return draw(d, tuple(x.shape), request, to, found.to(x.dtype))


def spread(answers: Tensor, n: int) -> Tensor:
    """The uncertainty of each pixel: the standard deviation over n answers, over all channels, (B, 1, *).

    Args:
        answers: (B n, *), as an edit returns them.

    Raises:
        ValueError: fewer than two answers.
    """
    if n < 2 or len(answers) % n:
        raise ValueError(f"a spread is that of two answers or more, got {len(answers)} in sets of {n}")
    each = answers.reshape(-1, n, *answers.shape[1:])
    return each.var(1).mean(1, keepdim=True).sqrt()


def coverage(answers: Tensor, truth: Tensor) -> Tensor:
    """Whether the truth lies between the least and the greatest of its n answers, for each value: 0 to 1.

    If the answers are draws from p(x_0 | y) the truth is one more draw, so that the mean is (n - 1)/(n + 1): 0.9 for 19
    answers. The truth may be equal to answers, as 8-bit pixels are: its rank among them then counts as drawn at random.

    Args:
        answers: (n, *).
        truth: (*).

    Raises:
        ValueError: fewer than two answers, or shapes that differ.
    """
    n = len(answers)
    if n < 2 or answers.shape[1:] != truth.shape:
        raise ValueError(
            f"two answers or more of the truth's shape, got {tuple(answers.shape)} and {tuple(truth.shape)}"
        )
    below, equal = (answers < truth).sum(0), (answers == truth).sum(0)
    first, last = below.clamp(min=1), (below + equal).clamp(max=n - 1)  # ranks inside, of those from below on
    return (last - first + 1).clamp(min=0).to(torch.float64) / (equal + 1)


def _inverted(d: Denoises, x: Tensor, solver: str, steps: int, cond: dict[str, Any], tolerance: float) -> Tensor:
    """The state from which the solver makes x. Warns where it is not found to the tolerance."""
    found = invert(d, x, solver, steps, cond=cond, tolerance=tolerance)
    worst = float(found.error.max())
    if worst > tolerance:
        text = f"the inversion is off by {worst:.2g}, not {tolerance:g}, of values that span 2: take more steps"
        warnings.warn(text, UserWarning, stacklevel=3)
    return found.x


def _guided(d: Denoises, scale: float | None) -> Denoises:
    return d if scale is None or scale == 1 else ClassifierFree(d, scale)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _repeated(cond: dict[str, Any] | None, count: int, n: int) -> dict[str, Any]:
    """The conditions of `count` pictures, of n answers each."""
    return rows_of(cond or {}, torch.arange(count).repeat_interleave(n))


def _shape_of(d: Denoises) -> tuple[int, ...]:
    spec = getattr(module_of(d), "data", None)
    if spec is None:
        raise ValueError("the model does not say what its samples look like: give restore an operator of their shape")
    return tuple(spec.shape)


def _picture_of(d: Denoises) -> tuple[int, ...]:
    """The shape of the pictures or clips of a model, which are not the samples of one of latents."""
    space = getattr(module_of(d), "space", None)
    return _shape_of(d) if space is None else tuple(space.shape)


def _of_samples(d: Denoises, A: Operator) -> Operator:
    """The operator on the model's samples; of latents through the decoder, if it is one on pictures."""
    space: Any = getattr(module_of(d), "space", None)
    if space is None or _shape_of(d) == A.shape or tuple(space.shape) != A.shape:
        return A
    return Decoded(A, space.mean_of, _shape_of(d))


def _check_shape(d: Denoises, shape: tuple[int, ...]) -> None:
    spec = getattr(module_of(d), "data", None)
    if spec is not None and tuple(spec.shape) != shape:
        raise ValueError(f"the model makes samples of {tuple(spec.shape)}, not of {shape}")


def _check_pictures(d: Denoises, x: Tensor) -> None:
    _check_shape(d, tuple(x.shape[1:]))
    if not bool(x.isfinite().all()):
        raise ValueError("the picture has values that are not finite")


def _slerp(d: Denoises, ends: Tensor, n: int) -> Tensor:
    """n states from ends[0] to ends[1], (2, *), along the great circle of R^-1 x."""
    try:
        white = d.process.noise.whiten(ends)
    except SingularCovarianceError:
        white = ends
    a, b = white.flatten(1)
    angle = float(torch.arccos(((a @ b) / (a.norm() * b.norm())).clamp(-1, 1)))
    share = torch.linspace(0, 1, n, dtype=ends.dtype, device=ends.device).reshape(-1, *[1] * (ends.ndim - 1))
    if math.sin(angle) < 1e-6:
        return (1 - share) * ends[:1] + share * ends[1:]
    sine = math.sin(angle)
    return (torch.sin((1 - share) * angle) * ends[:1] + torch.sin(share * angle) * ends[1:]) / sine
