"""Face swaps measured: in the procedural world against the truth, on photographs by a recogniser that no training saw.

Everything is kept in --out, and gone on with where it is called again. The tables of docs/faces.md are made of it.

    python evidence/faces.py world --out runs/evidence-faces --minutes 6 --seed 11 --seed 12
    python evidence/faces.py ceilings --seed 11
    ornstein faces prepare lfw-train.zip --out runs/lfw64
    python evidence/faces.py photos --faces runs/lfw64 --out runs/evidence-faces --world 12 --minutes 80
    python evidence/faces.py scores --faces runs/lfw64 --out runs/evidence-faces
    python evidence/faces.py flicker --faces runs/lfw64 --out runs/evidence-faces
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from ornstein.data import save_grid, to_uint8
from ornstein.evaluation import frechet_distance, open_features
from ornstein.evaluation.distortion import psnr
from ornstein.faces.align import Similarity, warp
from ornstein.faces.detect import Detector
from ornstein.faces.identity import agreement
from ornstein.faces.nets.placement import thin_plate
from ornstein.faces.recognise import Recogniser
from ornstein.faces.shape import shape_of, steadied
from ornstein.faces.swap.noise import FaceNoise
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.evaluate import Held, photos_of, score_swaps, swap_held
from ornstein.faces.train.face_set import open_faces
from ornstein.faces.train.objective import FaceSettings
from ornstein.faces.train.runs import people_split, pretrain_swap, train_recogniser, train_swap
from ornstein.faces.world import ATTRIBUTES, attributes, identities, nearest_identity
from ornstein.faces.world.dataset import cases, points, region
from ornstein.faces.world.demo import PHOTOS, demo, swap_cases
from ornstein.faces.world.scores import evaluate
from ornstein.faces.world.views import rendered
from ornstein.store import atomic_write
from ornstein.training import TrainConfig

_OTHERS = 600
LAID_ON = ("laid on", "laid on, not steadied")
KINDS = ("independent", "ar1:0.5", "ar1:0.9", "ar1:0.99", "shared")
# first what the guidance does, then the number of steps, the features, the target's own identity, the recogniser
SETTINGS = (
    *({"steps": 20, "guidance": w} for w in (4.0, 1.0, 2.0, 6.0)),
    *({"steps": n, "guidance": 4.0} for n in (1, 3, 6, 10)),
    *({"steps": 6, "guidance": 4.0, "lend": share} for share in (0.0, 1.0)),
    {"steps": 6, "guidance": 4.0, "strength": 1.5},
    {"steps": 6, "guidance": 4.0, "towards": 0.02},
)


def world(args: argparse.Namespace) -> None:
    out = args.out / "world"

    def tell(stage: str, done: float) -> None:
        print(f"\r{stage:<28}{done:6.1%}", end="", file=sys.stderr, flush=True)

    began = time.monotonic()
    finished = demo(out, args.minutes, photos=args.photos, preset=args.preset, tell=tell)
    scores = {name: asdict(score) for name, score in finished.scores.items()}
    spent = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time()}
    atomic_write(out / "scores.json", json.dumps(spent | {"scores": scores}, indent=1).encode())
    print(", ".join(f"{name} {value:.0f}" for name, value in spent.items()))
    for name, score in scores.items():
        print(f"{name:<20}" + "  ".join(f"{key} {value:.3f}" for key, value in score.items()))
    for seed in args.seed or ():
        unseen = cases(100, 64, seed)
        swaps = swap_cases(finished.model, unseen)
        inside = nearest_identity(swaps, unseen.states, unseen.people) == torch.arange(len(swaps))
        print(
            f"people of seed {seed}: {evaluate(unseen, swaps)['swap']}, "
            f"inside the face {float(inside.float().mean()):.0%}"
        )


def ceilings(args: argparse.Namespace) -> None:
    """What bounds a swap in the face world: where it may paint, and what moving and relighting a picture can do.

    "truth inside" is the truth where a swap may paint and the target elsewhere. "moved" is the source's face moved by a
    plate through its true points in the answer, with the best gain and shift of 8x8 cells, against the truth where the
    source shows its face: what a network has to paint anew is the rest.
    """
    for seed in args.seed or (11,):
        unseen = cases(args.among, 64, seed)
        source, target, truth = unseen.source, unseen.target, unseen.truth
        print(f"people of seed {seed}")
        for name, where in (("face", region(target.mask)), ("head", unseen.mask)):
            inside = torch.where(where > 0, truth.image, target.image)
            right = nearest_identity(inside, unseen.states, unseen.people) == torch.arange(args.among)
            print(f"truth inside the target's {name:<12} inside the face {float(right.float().mean()):.0%}")
        for name, ends in (("landmarks", truth.landmarks.shape[1]), ("all points", None)):
            here, there = ((2 * points(each)[:, :ends] + 1) / 64 - 1 for each in (source, truth))
            grid = thin_plate(here, there, 64)
            moved = F.grid_sample(source.image, grid, align_corners=False, padding_mode="border")
            seen = F.grid_sample(source.mask, grid, align_corners=False) * truth.mask
            lit = torch.stack([_relit(*each) for each in zip(moved, truth.image, seen, strict=True)])
            dB = (psnr(each, truth.image, seen).mean() for each in (moved, lit))
            print("moved by {:<22} {:.1f} dB, in the best light {:.1f} dB".format(name, *map(float, dB)))


def _relit(face: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor, cells: int = 8) -> torch.Tensor:
    """The face (3, S, S) times a map plus a map, bilinear between cells, by weighted least squares of the truth."""
    size, hats = face.shape[-1], torch.eye(cells**2).reshape(-1, 1, cells, cells)
    hats = F.interpolate(hats, (size, size), mode="bilinear", align_corners=False).flatten(1)
    out = []
    for mine, wanted in zip(face.flatten(1) + 1, truth.flatten(1) + 1, strict=True):
        basis = torch.cat([hats * mine, hats])
        weighted = basis * weight.flatten()
        best = torch.linalg.solve(weighted @ basis.T + 1e-2 * torch.eye(len(basis)), weighted @ wanted)
        out.append((best @ basis - 1).view(size, size))
    return torch.stack(out)


def drawn(args: argparse.Namespace) -> None:
    """Photos of rendered people as files, two of each: for `ornstein faces train`, and for pictures to show."""
    people = identities(args.people, 5).repeat_interleave(2, 0)
    states = attributes(len(people), 5)
    for name in ("yaw", "pitch", "roll"):
        states[:, ATTRIBUTES.index(name)] *= 0.5  # as photographs mostly are
    (images,) = rendered(people, states, args.size, lambda out: (to_uint8(out.image),))
    for i, image in enumerate(images):
        path = args.out / f"person{i // 2:03d}" / f"{i % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def photos(args: argparse.Namespace) -> None:
    train, held = people_split(open_faces(args.faces))
    out = args.out / "photos"
    if args.recogniser:
        teach = TrainConfig(minutes=args.recogniser, batch=64, learning_rate=2e-3, checkpoint_every=200)
        for state in train_recogniser(train, out, teach):
            if state.step % 50 == 0:
                print(f"recogniser {state.step}: {state.loss:.3f}, {state.images_per_second:.0f} images/s", flush=True)
    if args.world:
        first = TrainConfig(minutes=args.world, batch=32, learning_rate=1e-3, checkpoint_every=200)
        for state in pretrain_swap(train, out, first, args.preset):
            if state.step % 50 == 0:
                print(f"rendered faces {state.step}: {state.loss:.3f}", flush=True)
    settings = FaceSettings(identity=args.identity, swap=args.swap, begins=args.begins)
    config = TrainConfig(minutes=args.minutes, batch=32, learning_rate=1e-3, checkpoint_every=200)
    # the folder is there, with the recogniser in it: a run that was not begun is gone on with from its beginning
    for state in train_swap(train, out, config, settings, args.preset, resume=True):
        if state.step % 50 == 0:
            print(f"swap {state.step}: {state.loss:.3f}, {state.images_per_second:.0f} images/s", flush=True)
    model = FaceModel.load(out)
    print("recogniser on held-out people:", agreement(model.recogniser, photos_of(held)))


def scores(args: argparse.Namespace) -> None:
    train, of_held = people_split(open_faces(args.faces))
    held = Held.of(of_held, args.among)
    out = args.out / "photos"
    # the crops of held-out people hold the targets themselves, which favours these: photos of others do not
    features = open_features("conv")(train.images[:_OTHERS])
    others = features(train.images[:_OTHERS])
    model, recogniser, detector = FaceModel.load(out), Recogniser(), Detector()
    rows = []
    # a model that sees the shape of a face begins with the face laid on: alone, and then painted over
    onsets: tuple[dict[str, Any], ...] = (
        ({"onset": 0.0}, *({"onset": args.onset} | each for each in SETTINGS)) if model.shaped else SETTINGS
    )
    for settings in onsets[: args.settings]:
        swaps, seconds = swap_held(model, held, **settings)
        score = score_swaps(held, swaps, seconds, recogniser, detector, **settings)
        away = {
            "frechet_others": frechet_distance(features(swaps), others),
            "targets_others": frechet_distance(features(held.crops), others),
        }
        rows.append(score.as_row() | away)
        print(json.dumps(rows[-1]), flush=True)
        atomic_write(out / "scores.json", json.dumps(rows, indent=1).encode())
        if args.sheet is not None:
            shown = torch.cat([held.crops[:16], held.crops.roll(-1, 0)[:16], swaps[:16]])
            save_grid(shown, args.sheet, columns=len(shown) // 3, upscale=max(1, 128 // model.size))


def flicker(args: argparse.Namespace) -> None:
    """Stills of held-out people, moved smoothly: how much a swap changes from frame to frame where its target stays.

    Differences of successive aligned frames inside the mask, root mean square, in grey levels; and the sharpness, what
    a mean of 3 x 3 pixels takes away. A model that sees the shape of a face begins at --onset, and "laid on" is 0, as
    in a film, whose meshes are steadied.
    """
    held = Held.of(people_split(open_faces(args.faces))[1], args.among)
    model = FaceModel.load(args.out / "photos")
    known = held.photos.known_as(model.recogniser.normalised(held.embeddings))
    sources = known.faces(torch.arange(len(known)))
    target = sources.roll(-1)
    size, frames, n = model.size, args.frames, len(sources)
    still, at = size * (0.5 + 0.5j), torch.arange(frames) / frames
    clips = []
    for image in target.image:
        places = [size * complex(0.75 + 0.1 * math.sin(6 * x), 0.75) for x in at.tolist()]
        turns = zip(at.tolist(), places, strict=True)
        moves = [Similarity.about(still, place, 1 + 0.1 * x, 8 * math.sin(4 * x)) for x, place in turns]
        there = [warp(image, move, (3 * size // 2, 3 * size // 2)) for move in moves]
        clips.append(torch.stack([warp(f, m.inverse(), (size, size)) for f, m in zip(there, moves, strict=True)]))
    results = {}
    kinds = ("target", *((*LAID_ON,) if model.shaped else ()), *KINDS)
    shapes = [shape_of(127.5 * (clip + 1), five.expand(frames, -1, -1)) for clip, five in zip(
        clips if model.shaped else [], target.landmarks, strict=False)]  # fmt: skip
    for kind in kinds:
        levels, details = [], []
        for i, clip in enumerate(clips):
            mask, points = (each[i : i + 1].expand(frames, *each.shape[1:]) for each in (target.mask, target.landmarks))
            made = clip
            if kind != "target":
                laid = kind in LAID_ON
                z = FaceNoise("shared" if laid else kind, seed=0)(i, range(frames), size, None)
                start = model.denoiser.process.prior(tuple(z.shape), t=1.0).sample(z)
                source = sources.select(torch.tensor([i]))
                more: dict[str, Any] = {"onset": 0.0 if laid else args.onset} if shapes else {}
                if shapes:
                    more["points"] = shapes[i] if kind == LAID_ON[1] else steadied(shapes[i], None, size)
                made = swap_crops(model, clip, mask, points, source, steps=6, start=start, **more)
            change = made.clamp(-1, 1).diff(dim=0).square().mean(1, keepdim=True)
            levels.append(127.5 * float((change * mask[1:]).sum() / mask[1:].sum()) ** 0.5)
            fine = (made - F.avg_pool2d(made, 3, 1, 1, count_include_pad=False)).square().mean(1, keepdim=True)
            details.append(127.5 * float((fine * mask).sum() / mask.sum()) ** 0.5)
        results[kind] = {"flicker": sum(levels) / n, "sharpness": sum(details) / n}
        print(f"{kind:<24}{results[kind]['flicker']:7.2f}{results[kind]['sharpness']:7.2f}", flush=True)
    atomic_write(args.out / "photos" / "flicker.json", json.dumps(results, indent=1).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run in (world, ceilings, drawn, photos, scores, flicker):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--out", type=Path, default=Path("runs/evidence-faces"))
        if run not in (world, ceilings, drawn):
            command.add_argument("--faces", type=Path, required=True, help="what `ornstein faces prepare` made")
        if run is world:
            command.add_argument("--minutes", type=float, default=6.0)
            command.add_argument("--photos", type=int, default=PHOTOS)
            command.add_argument("--preset", default="xs")
        if run in (world, ceilings):
            command.add_argument("--seed", type=int, action="append", help="of other people to swap; may be repeated")
        if run is drawn:
            command.add_argument("--people", type=int, default=60)
            command.add_argument("--size", type=int, default=256)
        if run is photos:
            command.add_argument(
                "--recogniser", type=float, default=0.0, help="minutes for a distilled recogniser, 0 for dlib's"
            )
            command.add_argument("--world", type=float, default=12.0, help="minutes on rendered faces before")
            command.add_argument("--minutes", type=float, default=120.0, help="minutes for the swap")
            command.add_argument("--preset", default="s")
            command.add_argument("--identity", type=float, default=FaceSettings.identity)
            command.add_argument("--swap", type=float, default=FaceSettings.swap)
            command.add_argument("--begins", type=float, default=FaceSettings.begins)
        if run is flicker:
            command.add_argument("--among", type=int, default=8)
            command.add_argument("--frames", type=int, default=24)
        if run in (scores, flicker):
            command.add_argument("--onset", type=float, default=0.5)
        if run in (scores, ceilings):
            command.add_argument("--among", type=int, default=100)
        if run is scores:
            command.add_argument("--settings", type=int, help="how many settings, in order; all by default")
            command.add_argument("--sheet", type=Path, help="a PNG of source, target, swap; not to be published")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
