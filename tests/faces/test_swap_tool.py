"""Which faces and which parts of them a swap changes, what it keeps before them, and lists of many swaps."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.faces.align import TEMPLATE, mask
from ornstein.faces.detect import Face
from ornstein.faces.provenance.card import ModelCard
from ornstein.faces.settings import FACE, ORDERS, REGIONS, SwapCommand, parse_indices, parse_padding, parse_regions
from ornstein.faces.swap import Choice, SwapModel, Swapper, SwapSettings, ordered
from ornstein.faces.swap.benchmark import evaluate_protocol, read_protocols, swap_protocol
from ornstein.faces.swap.choose import assigned
from ornstein.faces.swap.colour import match_light
from ornstein.faces.swap.cover import Uncovered
from ornstein.faces.swap.detail import enlarged
from ornstein.faces.swap.finishing import SIDE, DetailNet, aligned_faces, load, train_detail
from ornstein.faces.swap.occluders import KINDS, covered
from ornstein.faces.swap.queue import read_rows
from ornstein.faces.swap.regions import head, hull, region_weights
from ornstein.faces.swap.tracks import Seen, by_frame, hold, identify, link
from ornstein.faces.tflite import TFLite

PLAIN = SwapSettings(steps=1, guidance=1.0, label=False)
POINTS = torch.tensor(TEMPLATE)[None] * 64 - 0.5


def swapper_of(stubs: SimpleNamespace, settings: SwapSettings = PLAIN) -> Swapper:
    return Swapper(stubs.untrained(), settings, stubs.Squares(), stubs.Colours())


def scene(stubs: SimpleNamespace) -> Tensor:
    return stubs.scenery(90, 160, green=(20, 30, 30), red=(70, 10, 40), blue=(120, 40, 20))


def swapped(stubs: SimpleNamespace, settings: SwapSettings = PLAIN, **choice: object) -> Tensor:
    swapper, picture = swapper_of(stubs, settings), scene(stubs)
    who = Choice([stubs.someone([1.0, -2.0, 0.5])], **choice)  # pyright: ignore[reportArgumentType]
    return swapper.picture(picture, picture, swapper.choose(picture, who, "scene"), who)


def changed(stubs: SimpleNamespace, picture: Tensor) -> set[str]:
    """The faces in whose place a pixel differs."""
    places = {"green": (20, 30, 30), "red": (70, 10, 40), "blue": (120, 40, 20)}
    different = (picture != scene(stubs)).any(0)
    return {name for name, (x, y, side) in places.items() if bool(different[y : y + side, x : x + side].any())}


@pytest.mark.parametrize(
    ("order", "first"),
    [("left-right", "green"), ("right-left", "blue"), ("top-bottom", "red"), ("large-small", "red"),
     ("small-large", "blue"), ("best-worst", "red"), ("worst-best", "blue"), ("bottom-top", "blue")],
)  # fmt: skip
def test_a_face_is_chosen_by_order_and_the_others_are_untouched(stubs: SimpleNamespace, order: str, first: str) -> None:
    assert order in ORDERS
    assert changed(stubs, swapped(stubs, order=order, indices=(1,))) == {first}


def test_faces_are_chosen_by_number(stubs: SimpleNamespace) -> None:
    assert changed(stubs, swapped(stubs, indices=(1, 3))) == {"green", "blue"}
    with pytest.raises(UserError, match="--index 4: scene has 3 faces"):
        swapped(stubs, indices=(4,))
    assert parse_indices("1, 3") == (1, 3)
    for text in ("", "0", "1,1", "a", "1;2", "-1"):
        with pytest.raises(UserError, match="numbers of faces from 1 on"):
            parse_indices(text)


def test_a_distance_limits_who_is_taken_for_a_reference(stubs: SimpleNamespace) -> None:
    near = stubs.Colours()(scene(stubs), stubs.Squares()(scene(stubs)))[:1] + torch.tensor([0.3, 0, 0])
    assert len(changed(stubs, swapped(stubs, references=near, distance=0.5))) == 1
    with pytest.raises(UserError, match=r"the nearest is 0.30 away, the limit is 0.2"):
        swapped(stubs, references=near, distance=0.2)
    assert assigned([[0.1, 0.2], [0.05, 0.4]], 0.6) == [1, 0] and assigned([[0.1], [0.2]], 0.6) == [0, -1]


def test_regions_part_the_face() -> None:
    parts = [region_weights(POINTS, 64, {name}) for name in FACE]
    torch.testing.assert_close(torch.stack(parts).sum(0), torch.ones(1, 1, 64, 64))
    assert torch.equal(region_weights(POINTS, 64, set(FACE)), torch.ones(1, 1, 64, 64))
    eyes, brows, nose, mouth, _ = (part[0, 0] for part in parts)
    for part, (x, y) in ((eyes, (0.64, 0.42)), (brows, (0.36, 0.34)), (nose, (0.5, 0.57)), (mouth, (0.5, 0.75))):
        assert float(part[round(y * 64), round(x * 64)]) > 0.9
    shifted = region_weights(POINTS + torch.tensor([6.0, 3.0]), 64, {"mouth"})[0, 0]
    torch.testing.assert_close(shifted[3:, 6:], mouth[:-3, :-6], atol=1e-5, rtol=0)  # it goes with the landmarks
    above = head(POINTS, 64)[0, 0]
    assert (
        float((above * mask(POINTS, 64)[0, 0]).max()) < 0.3
        and float(above[5, 32]) > 0.9
        and float(above[50].max()) == 0
    )
    with pytest.raises(ValueError, match="unknown regions: ears"):
        region_weights(POINTS, 64, {"ears"})


def test_padding_moves_the_edges_of_the_mask() -> None:
    plain, wide = mask(POINTS, 64)[0, 0] > 0.5, hull(POINTS, 64, (0.1, 0, 0, 0.05))[0, 0] > 0.5
    rows, columns = plain.nonzero().T
    more_rows, more_columns = wide.nonzero().T
    assert abs((rows.min() - more_rows.min()) - 6.4) < 1.5 and rows.max() == more_rows.max()
    assert abs((columns.min() - more_columns.min()) - 3.2) < 1.5 and columns.max() == more_columns.max()
    assert parse_padding("-5") == (-0.05,) * 4 and parse_padding("1,2,3,4") == (0.01, 0.02, 0.03, 0.04)
    for text in ("x", "1,2", "41", "-40", "nan"):
        with pytest.raises(UserError, match="padding"):
            parse_padding(text)


def test_only_the_chosen_regions_are_repainted(stubs: SimpleNamespace) -> None:
    whole, mouth = (swapped(stubs, replace(PLAIN, regions=each), every="largest") for each in ("all", "mouth"))
    before = scene(stubs)
    inside, all_ = (mouth != before).any(0), (whole != before).any(0)
    assert 0 < int(inside.sum()) < 0.3 * int(all_.sum())
    rows = inside.nonzero()[:, 0].float()
    assert float(rows.min()) > 30  # of the square from row 10 to 50 the lower half
    with pytest.raises(UserError, match="'ears' is none of all, eyes"):
        replace(PLAIN, regions="eyes,ears")
    assert parse_regions("all") == set(FACE) and parse_regions(" eyes, hair ") == {"eyes", "hair"} <= set(REGIONS)


def test_light_is_taken_place_by_place() -> None:
    draw = torch.Generator().manual_seed(0)
    face = 0.3 + 0.2 * torch.rand(3, 32, 32, generator=draw)
    linear = torch.where(face <= 0.04045, face / 12.92, ((face + 0.055) / 1.055) ** 2.4)
    ramp = torch.linspace(0.5, 1.5, 32)[None, None]
    lit = linear * ramp
    lit = 1.055 * lit ** (1 / 2.4) - 0.055
    found = match_light(face, lit, torch.ones(1, 32, 32))
    assert float((found - lit).abs().mean()) < 0.25 * float((face - lit).abs().mean())
    torch.testing.assert_close(match_light(face, face, torch.ones(1, 32, 32)), face, atol=1e-5, rtol=0)


def test_what_covers_a_face_is_found_and_kept() -> None:
    """On rendered people that the network has not seen; the margins are far below what it does (docs/swap.md)."""
    faces, shown, points = aligned_faces(16, 4321)
    inside = hull(points, SIDE)
    find, draw = Uncovered("net"), torch.Generator().manual_seed(1)
    for kind in ("glasses", "thing", "microphone"):
        assert kind in KINDS
        pictures, left = covered(faces, points, draw, kind)
        seen = find((255 * pictures).round().to(torch.uint8), inside)
        hidden = (left < 0.5) & (inside > 0.5)
        clear = (left > 0.99) & (inside > 0.5) & (shown > 0.9)
        assert float((seen[hidden] < 0.5).float().mean()) > 0.5
        assert float((seen[clear] < 0.5).float().mean()) < 0.2


def test_a_face_is_enlarged_in_tiles_as_in_one_go() -> None:
    picture = torch.rand(3, 40, 150, generator=torch.Generator().manual_seed(0))
    net = DetailNet()
    torch.nn.init.normal_(net.leave.weight, std=0.05)
    torch.nn.init.normal_(net.enter.weight, std=0.2)
    fine = enlarged(picture, 2, 1.0, net)
    whole = F.interpolate(picture[None], scale_factor=2.0, mode="bicubic")
    with torch.no_grad():
        beyond = net(picture[None]) - whole
    low = F.interpolate(F.avg_pool2d(beyond, 2), scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(fine, (whole + beyond - low)[0].clamp(0, 1), atol=1e-5, rtol=0)
    assert enlarged(picture, 4, 0.0).shape == (3, 160, 600) and torch.equal(enlarged(picture, 1, 1.0), picture)
    with pytest.raises(ValueError, match="power of 2"):
        enlarged(picture, 3, 0.5)


def test_detail_is_nearer_to_the_truth_than_a_plain_enlargement() -> None:
    faces, _, _ = aligned_faces(8, 4321)
    coarse = F.interpolate(faces, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
    errors = [
        float(
            torch.stack(
                [(enlarged(c, 2, share) - f).square().mean() for c, f in zip(coarse, faces, strict=True)]
            ).mean()
        )
        for share in (0.0, 1.0)
    ]
    assert errors[1] < 0.7 * errors[0]  # measured: 0.45


def test_the_networks_of_a_run_are_its_own(tmp_path: Path) -> None:
    from ornstein.faces.swap.finishing import FOLDER, save

    net = train_detail(0.002, faces=2, batch=2)
    (tmp_path / FOLDER).mkdir()
    save(net, tmp_path / FOLDER / "detail.safetensors")
    own, shipped = load("detail", tmp_path), load("detail")
    assert torch.equal(own.state_dict()["enter.weight"], net.state_dict()["enter.weight"].half().float())
    assert not torch.equal(own.state_dict()["enter.weight"], shipped.state_dict()["enter.weight"])
    (tmp_path / FOLDER / "detail.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        load("detail", tmp_path)


def seen(x: float, *away: float) -> Seen:
    return Seen(-1 if away else 0, 20.0, (x, 0.0) * 5, away)


def test_tracks_are_told_apart_by_identity() -> None:
    """Two people; one is compared only now and then, the other is nobody's reference."""
    frames = [
        [seen(k, *((0.3, 0.9) if k % 5 == 0 else ())), seen(100 + k, *((0.9, 0.8) if k % 5 == 0 else ()))]
        for k in range(12)
    ]
    frames = [[replace(each, source=-1) for each in frame] for frame in frames]
    kept = identify(link(frames, gap=2), 0.6)
    assert [(track.source, track.first, track.last) for track in kept] == [(0, 0, 11)]
    # of two tracks at once that are like one reference the nearer has it; and the same person later again
    frames = [[seen(0, 0.2), seen(100, 0.5)]] * 4 + [[]] * 9 + [[seen(0, 0.4)]] * 3
    kept = identify(link(frames, gap=2), 0.6)
    assert [(track.first, track.last) for track in kept] == [(0, 3), (13, 15)]
    # someone else at the same place begins a track of their own
    frames = [[seen(0, 0.1, 0.9)]] * 3 + [[seen(1, 0.9, 0.1)]] * 3
    assert [(t.source, t.first) for t in identify(link(frames, gap=2, distance=0.6), 0.6)] == [(0, 0), (1, 3)]


def test_lost_faces_are_held_and_fade_but_not_over_a_cut() -> None:
    frames = [[]] * 4 + [[seen(2.0 * k)] for k in range(4, 9)] + [[]] * 6
    (track,) = tracks = link(frames, gap=1, cuts={4})
    hold(tracks, 3, len(frames), {4})
    assert (track.first, track.last, track.before, track.after) == (4, 8, 0, 3)
    points, share = track.at(10)
    assert share == 0.5 and points[0].tolist() == pytest.approx([20, 0], abs=0.1)  # it moves on
    assert [bool(there) for _, there in by_frame(tracks, 0, 15)] == [False] * 4 + [True] * 8 + [False] * 3
    cut = link([[seen(0)]] * 6, gap=5, cuts={3})
    assert [(track.first, track.last) for track in cut] == [(0, 2), (3, 5)]


def test_a_file_of_tensorflow_lite_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no TensorFlow Lite file"):
        TFLite(b"no such thing at all", "x.tflite")
    with pytest.raises(UserError, match=r"x\.tflite is damaged"):
        TFLite(struct.pack("<I", 900) + b"TFL3" + bytes(20), "x.tflite")
    with pytest.raises(UserError, match="cannot read"):
        TFLite.load(tmp_path / "none.tflite")


def test_orders_of_faces() -> None:
    points = torch.tensor(TEMPLATE, dtype=torch.float64)
    faces = [Face(points * 10 + shift, score) for shift, score in ((0.0, 0.5), (50.0, 0.9))]
    faces.append(Face(points * 30 + 20, 0.7))
    for order in ORDERS:
        one, two = ordered(faces, order), ordered(faces, "-".join(reversed(order.split("-"))))
        assert [id(face) for face in one] == [id(face) for face in reversed(two)], order


def test_rows_of_a_list_have_settings_of_their_own(tmp_path: Path) -> None:
    asked = SwapCommand(consent="Ann Lee, a test", steps=7, pairs=tmp_path / "q.csv")
    (tmp_path / "q.csv").write_text(
        "source,target,out,steps,regions,from,reference,detect-every,label\n"
        "a.png,b.png,c.png,,,,,,\n"
        'a.png,b.mp4,c.mp4,3,"eyes,mouth",1:02,r.png;s.png,2,false\n'
        "a.png,,c.png,,,,,,\n"
        "a.png,b.png,c.png,many,,,,,\n"
        "a.png,b.png,c.png,0,,,,,\n"
        "a.png,b.png,c.png,1,2,3,4,5,6,7,8\n"
    )
    rows = read_rows(tmp_path / "q.csv", asked)
    assert [row.line for row in rows] == [2, 3, 4, 5, 6, 7]
    assert rows[0].asked.steps == 7 and rows[0].own == {"out"} and rows[0].fault is None
    second = rows[1].asked
    assert (second.steps, second.regions, second.begin, second.every, second.label) == (
        3,
        "eyes,mouth",
        "1:02",
        2,
        False,
    )
    assert second.reference == [tmp_path / "r.png", tmp_path / "s.png"] and second.paths == [
        tmp_path / "a.png",
        tmp_path / "b.mp4",
    ]
    faults = [row.fault or "" for row in rows[2:]]
    for fault, text in zip(
        faults, ("is empty", "steps 'many' is no number", "steps must be at least 1", "cells for 9"), strict=True
    ):
        assert text in fault, faults
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"source": "a.png", "target": "b.png", "out": "c.png", "padding": "5", "index": "2"})
        + "\n\nno json\n[1]\n"
        + json.dumps({"source": "a.png", "target": "b.png", "out": "c.png", "ears": 1})
        + "\n"
        + json.dumps({"source": "a.png", "target": "b.png", "out": "c.png", "consent": "Bo Diaz, his own"})
    )
    rows = read_rows(tmp_path / "q.jsonl", asked)
    assert [row.line for row in rows] == [1, 3, 4, 5, 6]
    assert rows[0].asked.index == "2" and rows[4].asked.consent == "Bo Diaz, his own"
    assert "is no JSON" in str(rows[1].fault) and "no JSON object" in str(rows[2].fault)
    assert "unknown key 'ears'" in str(rows[3].fault)
    for text, message in (
        ("source,target,out,ears\n", "unknown column 'ears'"),
        ("source,target,out\n", "has no rows"),
    ):
        (tmp_path / "q.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            read_rows(tmp_path / "q.csv", asked)


def test_the_protocols_of_a_benchmark(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    """People are colours; the untrained model leaves them who they are, and a copy of the source is the source."""
    (tmp_path / "faces").mkdir()
    names = {"green": "0001", "red": "0002", "blue": "0003"}
    for name, number in names.items():
        for k in range(2):
            picture = stubs.scenery(64, 64, **{name: (20 + k, 20, 24)})
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "faces" / f"{number}-0_{k}.png")
    (tmp_path / "benchmark").mkdir()
    listed = tmp_path / "benchmark" / "image_pairs_normal.txt"
    listed.write_text("0001-0_0.png 0002-0_0.png\n0002-0_1.png 0003-0_1.png\n\n")
    pairs = read_protocols(tmp_path)
    assert pairs == {"normal": [("0001-0_0.png", "0002-0_0.png"), ("0002-0_1.png", "0003-0_1.png")]}
    swapper = swapper_of(stubs)
    model = SwapModel(swapper.model, ModelCard(), "ab" * 32)
    made, seconds = swap_protocol(swapper, model, tmp_path, pairs["normal"], tmp_path / "out")
    assert [path.name for path in made.values()] == ["0001-0_0-0002-0_0.png", "0002-0_1-0003-0_1.png"] and seconds > 0
    for (source, _), path in made.items():  # a perfect swap: the source's own picture, at another place
        path.write_bytes((tmp_path / "faces" / source).read_bytes())
    scores = evaluate_protocol(swapper, tmp_path, pairs["normal"], made, seconds)
    assert (scores.pairs, scores.swapped, scores.people) == (2, 2, 3)
    assert scores.retrieval == 1 and scores.still_target == 0 and scores.similarity == pytest.approx(1, abs=1e-6)
    for (_, target), path in made.items():
        path.write_bytes((tmp_path / "faces" / target).read_bytes())
    scores = evaluate_protocol(swapper, tmp_path, pairs["normal"], made, seconds)
    assert scores.retrieval == 0 and scores.still_target == 1 and scores.pose == 0 and scores.ssim == pytest.approx(1)
    (tmp_path / "faces" / "0003-0_1.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 4 pictures are not in .*faces, the first 0003-0_1\.png"):
        read_protocols(tmp_path)
    assert read_protocols(tmp_path, 1) == {"normal": [("0001-0_0.png", "0002-0_0.png")]}
    for text, message in (
        ("a b c\n", "line 1: write SOURCE TARGET"),
        ("../x-0.png 0001-0_0.png\n", "line 1"),
        ("", "no pairs"),
    ):
        listed.write_text(text)
        with pytest.raises(UserError, match=message):
            read_protocols(tmp_path)
    listed.unlink()
    with pytest.raises(UserError, match=r"has no image_pairs_normal\.txt"):
        read_protocols(tmp_path)
