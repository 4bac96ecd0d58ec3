"""What bounds the measures of swaps: a perfect swap by them, keeping the target, noise in films, profiles, turns.

python evidence/face_limits.py perfect --among 100
python evidence/face_limits.py kept --run runs/faces --faces runs/faces/prepared
python evidence/face_limits.py films --run runs/demo-swap
python evidence/face_limits.py profiles
python evidence/face_limits.py turns --out docs/images/swap-turns.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import save_grid, to_uint8, to_unit
from ornstein.evaluation import frechet_distance, open_features
from ornstein.faces import align
from ornstein.faces.blaze import BlazeDetector
from ornstein.faces.detect import Detector, Face
from ornstein.faces.identity import IdentityNet
from ornstein.faces.mesh import expression, mesh, part_masks
from ornstein.faces.recognise import Recogniser
from ornstein.faces.swap import Choice, Swapper, SwapSettings
from ornstein.faces.swap.noise import FaceNoise
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.evaluate import Held, found_landmarks, score_swaps, seen_again, swap_held
from ornstein.faces.train.face_set import open_faces
from ornstein.faces.train.objective import face_denoiser
from ornstein.faces.train.runs import people_split
from ornstein.faces.world import ATTRIBUTES, attributes, flow, identities, motion, render
from ornstein.faces.world.dataset import cases, paintable, points
from ornstein.faces.world.demo import sources
from ornstein.faces.world.framed import FIVE, framed
from ornstein.noise import Warped

_LARGE = 256  # pixels a side that the networks of landmarks see
KEPT = ({}, {"lips": 1.0}, {"nose": 1.0}, {"lips": 1.0, "nose": 1.0, "corners": 1.0})
_SPOTS = {"nose": (slice(4, 5), 0.06), "corners": (slice(0, 4), 0.035)}  # landmarks, and shares of the side
NOISES = ("independent", "ar1:0.9", "shared", "warped")


def perfect(args: argparse.Namespace) -> None:
    """Pose and expression of the TRUE swaps of rendered faces, by the measures of `faces evaluate`.

    The crop is framed by the target's landmarks. Pose is the difference of the five landmarks that dlib finds in the
    truth and in the target, whose pose and expression are the same numbers, and of the true landmarks of both.
    """
    unseen = cases(args.among, round(1.5 * args.size), args.seed)
    target, truth, places, wanted = [], [], [], []
    for here, there, a, b in zip(unseen.target.image, unseen.truth.image, unseen.target.landmarks,
                                 unseen.truth.landmarks, strict=True):  # fmt: skip
        image, five, move = framed(here, a[list(FIVE)], args.size)
        target.append(image)
        truth.append(align.warp(there, move, (args.size, args.size)))
        places.append(five)
        wanted.append(move(b[list(FIVE)]).float())
    target, truth = (to_uint8(torch.stack(each)) for each in (target, truth))
    places, wanted = torch.stack(places), torch.stack(wanted)
    detector = Detector(thorough=False)
    (there, seen), (here, also) = (found_landmarks(detector, each, places) for each in (truth, target))
    both = seen & also
    eyes = (here[:, :2].mean(1) - here[:, 2:4].mean(1)).norm(dim=1)

    def apart(a: Tensor, b: Tensor) -> float:
        return float(((a - b).square().sum(2).mean(1).sqrt() / eyes)[both].mean())

    large, at = _enlarged(target, places)
    shown = expression(mesh(large, at))
    moved = expression(mesh(_enlarged(truth, places)[0], at))
    again, moves = seen_again(target, places)
    jitter = expression(mesh(*_enlarged(again, moves)))
    print(f"{int(both.sum())} of {len(seen)} pairs in which dlib finds both faces")
    print(f"pose: true swap {apart(there, here):.4f}, by the true landmarks {apart(wanted, places):.4f}")
    errors = (float((each - shown)[both].square().mean().sqrt()) for each in (moved, jitter))
    print("expression: true swap {:.4f}, jitter of the target {:.4f}".format(*errors))


def _enlarged(crops: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    large = F.interpolate(crops.float(), (_LARGE, _LARGE), mode="bicubic", align_corners=False).clamp(0, 255)
    return large, (landmarks + 0.5) * (_LARGE / crops.shape[-1]) - 0.5


def kept(args: argparse.Namespace) -> None:
    """Swaps by geometry alone of held-out people, with some of the target's own features blended in."""
    train, of_held = people_split(open_faces(args.faces))
    held, model = Held.of(of_held, args.among), FaceModel.load(args.run)
    recogniser, detector = Recogniser(), Detector(thorough=False)
    features = open_features("conv")(train.images[:600])
    others = features(train.images[:600])
    swaps, seconds = swap_held(model, held, onset=0.0)
    targets, five = held.crops.roll(-1, 0), held.landmarks.roll(-1, 0).float()
    shape = held.photos.points
    assert shape is not None
    for parts in KEPT:
        mixed = to_unit(swaps)
        for name, weight in parts.items():
            if name in _SPOTS:
                some, width = _SPOTS[name]
                where = align.landmark_map(five[:, some], model.size, width).amax(1, keepdim=True)
            else:
                where = F.avg_pool2d(part_masks(shape.roll(-1, 0)[:, :468, :2].float(), model.size, [name]), 3, 1, 1)
            mixed = torch.lerp(mixed, to_unit(targets), weight * where)
        done = to_uint8(mixed)
        s = score_swaps(held, done, seconds, recogniser, detector)
        away = frechet_distance(features(done), others) / frechet_distance(features(targets), others)
        print(
            f"{'+'.join(parts) or 'nothing':<20} judge {s.judge_top1:.2f} target {s.judge_target:.2f} "
            f"pose {s.pose:.4f} expression {s.expression:.4f} (jitter {s.jitter:.4f}) found {s.found:.2f} "
            f"Frechet {s.frechet:.1f} ({s.frechet_floor:.1f}), of others {away:.3f} of the targets'",
            flush=True,
        )


def films(args: argparse.Namespace) -> None:
    """Rendered clips swapped by the model of the demo, by the noise of the frames: flicker along the motion, sharpness.

    Flicker: root mean square, in grey levels, of a frame minus the one before it moved by the true flow of the person
    that it shows, where both show the same skin. Sharpness: of a frame minus its mean of 3x3 pixels, inside the face.
    """
    model, size, frames = FaceModel.load(args.run), 64, args.frames
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for clip in range(args.among):
        who = identities(2, args.seed, 2 * clip)
        states = motion(clip + 1, frames, args.seed)[clip]
        source, target = (each.expand(frames, -1) for each in who)
        filmed, truth = render(target, states, size), render(source, states, size)
        still = render(who[:1], attributes(1, args.seed, 1000 + clip), size)
        carried, valid = flow(target[1:], states[:-1], states[1:], size)
        mine = flow(source[1:], states[:-1], states[1:], size)
        where = paintable(filmed)
        shown = {"the target": (filmed.image, carried, valid), "the truth": (truth.image, *mine)}
        for kind in NOISES:
            if kind == "warped":
                draw = torch.Generator().manual_seed(args.seed + clip)
                z = Warped(torch.where(valid, carried, 0)).sample((1, 3, frames, size, size), draw)[0].transpose(0, 1)
            else:
                z = FaceNoise(kind, args.seed)(clip, range(frames), size, None)
            made = swap_crops(
                model,
                filmed.image,
                where,
                points(filmed),
                sources(model, still),
                steps=args.steps,
                start=model.denoiser.process.prior(tuple(z.shape), t=1.0).sample(z),
            )
            shown[kind] = (made.cpu(), *mine)
        for name, (pictures, moved, seen) in shown.items():
            inside = truth.mask if name != "the target" else filmed.mask
            square = float(((pictures - truth.image).square() * truth.mask).sum() / (3 * truth.mask.sum()))
            rows.setdefault(name, []).append((*_steady(pictures, moved, seen, inside), 127.5 * square**0.5))
    for name, values in rows.items():
        flicker, sharp, error = (sum(each) / len(each) for each in zip(*values, strict=True))
        print(f"{name:<14} flicker {flicker:6.2f}  sharpness {sharp:6.2f}  error {error:6.2f}")


def _steady(clip: Tensor, moved: Tensor, valid: Tensor, mask: Tensor) -> tuple[float, float]:
    size = clip.shape[-1]
    along = torch.arange(size) + 0.0
    at = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1) + moved.permute(0, 2, 3, 1)
    next_ = F.grid_sample(clip[1:], (2 * at + 1) / size - 1, align_corners=False, padding_mode="border")
    seen = valid.float() * (mask[:-1] > 0.99)
    change = float(((next_ - clip[:-1]).square() * seen).sum() / (3 * seen.sum()).clamp(min=1))
    fine = (clip - F.avg_pool2d(clip, 3, 1, 1, count_include_pad=False)).square()
    return 127.5 * math.sqrt(change), 127.5 * math.sqrt(float((fine * mask).sum() / (3 * mask.sum())))


def profiles(args: argparse.Namespace) -> None:
    """How many rendered faces the detectors find by how far the head is turned, and how far off their landmarks are.

    The error is the root mean square of the five landmarks, hidden ones too, as a share of the eyes' distance of the
    same head from the front.
    """
    people, states = identities(args.among, args.seed), attributes(args.among, args.seed)
    yaw = ATTRIBUTES.index("yaw")
    for name in ("pitch", "roll"):
        states[:, ATTRIBUTES.index(name)] *= 0.3
    states[:, yaw] = 0.0
    front = render(people, states, _LARGE).landmarks[:, list(FIVE)]
    apart = (front[:, :2].mean(1) - front[:, 2:4].mean(1)).norm(dim=1)
    detectors = {"blaze": BlazeDetector(), "blaze, one look": BlazeDetector(thorough=False), "dlib": Detector()}
    for degrees in (0, 20, 40, 50, 60, 75, 90):
        states[:, yaw] = math.radians(degrees)
        out = render(people, states, _LARGE)
        true = out.landmarks[:, list(FIVE)].double()
        row = f"{degrees:3} degrees"
        for name, detector in detectors.items():
            found: list[tuple[Face, int]] = []
            for i, image in enumerate(to_uint8(out.image)):
                near = [face for face in detector(image) if math.dist(face.centre, true[i].mean(0).tolist()) < 50]
                found += [(near[0], i)] if near else []
            errors = [float((f.landmarks - true[i]).square().sum(1).mean().sqrt() / apart[i]) for f, i in found]
            middle = sorted(errors)[len(errors) // 2] if errors else float("nan")
            row += f"  {name}: found {len(found)}/{args.among}, error {middle:.2f}"
        print(row, flush=True)


def turns(args: argparse.Namespace) -> None:
    """Frontal sources laid on heads that turn away, whatever the limit: the target, the swap and the true one.

    Printed is the angle that the swap measures for each: of turning, nodding and leaning together.
    """
    model = FaceModel(face_denoiser(128, 4, "xs"), IdentityNet(4, width=8).eval())  # at onset 0 neither plays a part
    swapper = Swapper(model, SwapSettings(max_turn=180))
    people, states = identities(2 * args.among, args.seed), attributes(2 * args.among, args.seed)
    yaw = ATTRIBUTES.index("yaw")
    for name in ("pitch", "roll"):
        states[:, ATTRIBUTES.index(name)] *= 0.3
    mine, states = states[: args.among].clone(), states[args.among :]
    mine[:, yaw] = 0.0
    others, people = people[args.among :], people[: args.among]
    front = render(people, mine, _LARGE)
    places = front.landmarks[:, list(FIVE)].double()
    shown = [(image, Face(five, 1.0), "") for image, five in zip(to_uint8(front.image), places, strict=True)]
    sources = [swapper.source_of([each]) for each in shown]
    rows = []
    for degrees in args.degrees:
        states[:, yaw] = math.radians(degrees)
        out, truth = render(others, states, _LARGE), to_uint8(render(people, states, _LARGE).image)
        row, angles = [], []
        for i, image in enumerate(to_uint8(out.image)):
            face = Face(out.landmarks[i, list(FIVE)].double(), 1.0)
            choice = Choice([sources[i]])
            angles.append(swapper.turn(swapper.aligned(image, face), sources[i]))
            row += [image, swapper.picture(image, image, [(face, 0)], choice), truth[i]]
        print(f"{degrees:3} degrees: " + "  ".join(f"{each:.0f}" for each in angles), flush=True)
        rows.append(torch.cat([each[:, 28:228, 28:228] for each in row], 2))
    sheet = F.interpolate(torch.cat(rows, 1)[None].float(), scale_factor=0.5, mode="area")
    save_grid(sheet.round().to(torch.uint8), args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for what, among in ((perfect, 100), (kept, 100), (films, 4), (profiles, 12), (turns, 3)):
        command = commands.add_parser(what.__name__)
        command.set_defaults(what=what)
        command.add_argument("--among", type=int, default=among, help="people, or clips")
        command.add_argument("--seed", type=int, default=11)
        if what in (kept, films):
            command.add_argument("--run", type=Path, required=True)
        if what is kept:
            command.add_argument("--faces", type=Path, required=True, help="what `ornstein faces prepare` made")
        if what is perfect:
            command.add_argument("--size", type=int, default=64)
        if what is turns:
            command.add_argument("--out", type=Path, required=True, help="the picture")
            command.add_argument("--degrees", type=int, nargs="*", default=[0, 15, 25, 35, 45, 60])
        if what is films:
            command.add_argument("--frames", type=int, default=24)
            command.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    args.what(args)


if __name__ == "__main__":
    main()
