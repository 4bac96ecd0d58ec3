"""`ornstein swap` and its companions as a user types them, on the portrait that scikit-image ships."""

import json
import re
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import ornstein as orn
from ornstein.cli import app
from ornstein.data import to_uint8
from ornstein.denoiser import Data
from ornstein.faces.identity import IdentityNet
from ornstein.faces.train.objective import face_denoiser
from ornstein.faces.world import ATTRIBUTES, attributes, identities, render
from ornstein.nets import FaceUNet

AGREED = ("--i-have-consent", "Eileen Collins, a test")


def ornstein(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def one_line(result: Result) -> str:
    (line,) = result.output.strip().splitlines()[-1:]
    assert "Traceback" not in result.output and line.startswith("error: "), result.output
    return line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model, the portrait and a wall."""
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    pytest.importorskip("c2pa", reason="the extra `faces` is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose portrait this test needs, is not installed")
    root = tmp_path_factory.mktemp("swap")
    Image.fromarray(data.astronaut()[0:260, 90:350]).save(root / "face.png")
    Image.linear_gradient("L").resize((64, 64)).save(root / "wall.png")
    torch.manual_seed(0)
    net = FaceUNet(3, 32, 5, 128, width=16, multipliers=(1, 2), depths=(1, 1))
    torch.nn.init.normal_(net.head[2].weight, std=0.1)
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=Data((3, 32, 32))).save(root / "run")
    IdentityNet(128, width=8).save(root / "run" / "identity")
    return root


@pytest.fixture(autouse=True)
def there(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))


def swap(*arguments: object) -> Result:
    return ornstein("swap", *arguments, "--model", "run", "--steps", 1, "--guidance", 1)


def test_a_photo_is_swapped_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = swap("face.png", "face.png", "-o", out, *AGREED)
    assert result.exit_code == 0, result.output
    assert "licence not stated" in result.output and f"wrote {out}: 1 face in" in result.output
    found = ornstein("faces", "verify", out)
    assert found.exit_code == 0, found.output
    for text in (
        "by this machine's key",
        "intact",
        "compositeWithTrainedAlgorithmicMedia",
        AGREED[1],
        "label       shown",
    ):
        assert text in found.output
    hidden = swap("face.png", "face.png", "-o", out, "--no-label", "--face", "largest", *AGREED)
    assert hidden.exit_code == 0, hidden.output
    assert "REMOVED when it was made" in ornstein("faces", "verify", out).output
    log = [json.loads(line) for line in (tmp_path / "ornstein-swaps.jsonl").read_text().splitlines()]
    assert [entry["label"] for entry in log] == [True, False] and log[0]["consent"] == AGREED[1]


def test_verify_tells_a_changed_and_a_stripped_file(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert swap("face.png", "face.png", "-o", out, *AGREED).exit_code == 0
    Image.open(out).save(tmp_path / "stripped.png")
    data = bytearray(out.read_bytes())
    data[-200] ^= 1
    (tmp_path / "changed.png").write_bytes(data)
    for name, text in (("stripped", "no manifest"), ("changed", "CHANGED since it was signed")):
        result = ornstein("faces", "verify", tmp_path / f"{name}.png")
        assert result.exit_code == 1 and text in result.output, result.output


@pytest.mark.parametrize("consent", [(), ("--i-have-consent", " "), ("--i-have-consent", "yes")])
def test_nothing_is_swapped_without_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consent: tuple[str, ...]
) -> None:
    for name in ("ORNSTEIN_I_HAVE_CONSENT", "I_HAVE_CONSENT", "ORNSTEIN_SWAP_CONSENT", "CONSENT"):
        monkeypatch.setenv(name, AGREED[1])
    result = CliRunner().invoke(
        app,
        ["swap", "face.png", "face.png", "-o", str(tmp_path / "o.png"), "--model", "run", *consent],
        input="y\n" * 9,
    )
    assert result.exit_code == 2 and "who" in one_line(result) and not (tmp_path / "o.png").exists()


@pytest.fixture(scope="module")
def heads(place: Path) -> Path:
    """A model that sees the shape of a face, and rendered heads, turned by so many degrees: -20, and 25, and both."""
    people, states = identities(3, 11), attributes(3, 11)
    states[:, [ATTRIBUTES.index(name) for name in ("pitch", "roll")]] = 0
    states[:, ATTRIBUTES.index("yaw")] = torch.deg2rad(torch.tensor([-20.0, -20.0, 25.0]))
    mine, same, other = to_uint8(render(people, states, 256).image)
    mine_too = to_uint8(render(people[:1], states[2:], 256).image)[0]
    (place / "views").mkdir()
    shown = {"mine": mine, "other": other, "two": torch.cat([same, other], 2), "views/1": mine, "views/2": mine_too}
    for name, picture in shown.items():
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(place / f"{name}.png")
    face_denoiser(32, 128, "xs").save(place / "shaped")
    IdentityNet(128, width=8).save(place / "shaped" / "identity")
    return place


def test_a_face_that_is_turned_too_far_is_left(heads: Path, tmp_path: Path) -> None:
    def turned(source: str, target: str, *more: object) -> Result:
        out = ("-o", tmp_path / "out.png", "--model", "shaped", "--no-label")
        return ornstein("swap", source, target, *out, *AGREED, *more)

    result = turned("mine.png", "other.png")
    said = re.search(r"other\.png: the face at \d+,\d+ is turned by (\d+) degrees", one_line(result))
    assert result.exit_code == 2 and said is not None and 35 < int(said[1]) < 60  # 45 by the renderer
    assert "the limit is 35: choose a photo of the source from that side, or raise --max-turn" in one_line(result)
    assert list(tmp_path.iterdir()) == []
    result = turned("mine.png", "two.png")
    assert result.exit_code == 0 and ": 1 face in" in result.output, result.output
    assert "warning: two.png: the face at" in result.output and "the limit is 35" in result.output
    before, after = (np.array(Image.open(each)) for each in (heads / "two.png", tmp_path / "out.png"))
    assert (before != after)[:, :256].any() and not (before != after)[:, 256:].any()
    log = json.loads((tmp_path / "ornstein-swaps.jsonl").read_text())
    assert log["faces"] == 1 and log["faces_turned"] == 1 and log["settings"]["max_turn"] == 35
    result = turned("views", "two.png")  # of the source's photos the nearest view counts
    assert result.exit_code == 0 and ": 2 faces in" in result.output and "degrees" not in result.output, result.output
    result = turned("mine.png", "other.png", "--max-turn", 90)
    assert result.exit_code == 0 and ": 1 face in" in result.output, result.output
    assert "max turn 90" in ornstein("faces", "verify", tmp_path / "out.png").output.replace("_", " ")
    for model, degrees, message in (("run", 20, "need a model that sees the shape"), ("shaped", 181, "max-turn")):
        result = turned("mine.png", "other.png", "--max-turn", degrees, "--model", model)
        assert result.exit_code == 2 and message in one_line(result)


def test_costs_by_the_size_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ornstein.faces.swap.costs.SIZES", {"small": (320, 240), "none": (16, 12)})
    result = ornstein("faces", "costs", "run", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "320x240" in result.output and "16x12" not in result.output  # no face is found in the other
    source, find, paint, paste, photo, _, frame = map(float, re.findall(r"\d+\.\d\d", result.output))
    assert photo == pytest.approx(source + find + paint + paste, abs=0.03) and 0 < paint < frame
    assert "one face, 1 steps, blaze, cpu" in result.output
    monkeypatch.setattr("ornstein.faces.swap.costs.SIZES", {"none": (16, 12)})
    result = ornstein("faces", "costs", "run", "--steps", 1)
    assert result.exit_code == 2 and "finds no face in the rendered pictures" in one_line(result)
    result = ornstein("faces", "costs", "nowhere")
    assert result.exit_code == 2 and "nowhere holds no trained face-swap model" in one_line(result)


def test_no_face_names_the_file(tmp_path: Path) -> None:
    for source, target in (("wall.png", "face.png"), ("face.png", "wall.png")):
        result = swap(source, target, "-o", tmp_path / "o.png", *AGREED)
        assert result.exit_code == 2 and "no face found in wall.png" in one_line(result)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_does_what_it_can(place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 damaged")
    for name in ("face.png", "wall.png"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    rows = ["source,target,out", "face.png,bad.jpg,1.png", "face.png,face.png,2.png", "face.png,,3.png"]
    rows += ["face.png,wall.png,4.png", "face.png,none.png,5.png", "face.png,face.png,6.jpg"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    result = swap("--batch", tmp_path / "pairs.csv", *AGREED)
    assert result.exit_code == 1, result.output
    assert sorted(p.name for p in tmp_path.glob("?.*")) == ["2.png", "6.jpg"]
    text = result.output
    assert "2 of 6 swaps done, 4 failed" in text
    for line, reason in (
        (2, "bad.jpg cannot be used"),
        (4, "is empty"),
        (5, "no face found in"),
        (6, "there is no file"),
    ):
        assert any(f"line {line} of" in each and reason in each for each in text.splitlines()), text
    (tmp_path / "pairs.csv").write_text("source,target\nface.png,face.png\n")
    assert "has no column 'out'" in one_line(swap("--batch", tmp_path / "pairs.csv", *AGREED))


def test_a_list_goes_on_after_a_stop_and_its_rows_have_settings(place: Path, tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes((place / "face.png").read_bytes())
    rows = ["source,target,out,seed,index", "face.png,face.png,1.png,,", "face.png,face.png,2.png,5,1"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    result = swap("--batch", tmp_path / "pairs.csv", *AGREED)
    assert result.exit_code == 0 and "2 of 2 swaps done, 0 failed" in result.output, result.output
    assert "seed 5" in ornstein("faces", "verify", tmp_path / "2.png").output
    first = (tmp_path / "1.png").read_bytes()
    rows[2] = "face.png,face.png,2.png,6,1"
    (tmp_path / "pairs.csv").write_text("\n".join([*rows, "face.png,face.png,3.png,,7"]) + "\n")
    result = swap("--batch", tmp_path / "pairs.csv", "--resume", *AGREED)
    assert result.exit_code == 1 and "2 of 3 swaps done, 1 of them before, 1 failed" in result.output, result.output
    assert "line 4 of" in result.output and "--index 7" in result.output
    assert (tmp_path / "1.png").read_bytes() == first  # the other one has another seed now
    assert "seed 6" in ornstein("faces", "verify", tmp_path / "2.png").output


def test_faces_by_reference(tmp_path: Path) -> None:
    result = swap("face.png", "-o", tmp_path / "o.png", "--map", "face.png=face.png", *AGREED)
    assert result.exit_code == 0, result.output
    result = swap("face.png", "face.png", "-o", tmp_path / "o.png", "--face", "face.png", *AGREED)
    assert result.exit_code == 0, result.output


def test_protected_faces(tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    made = ornstein("faces", "protect", "face.png", "--out", listed)
    assert made.exit_code == 0 and "1 protected faces" in made.output, made.output
    result = swap("face.png", "face.png", "-o", tmp_path / "o.png", "--block-list", listed, *AGREED)
    assert result.exit_code == 2 and "on the list of protected faces" in one_line(result)


def test_a_model_for_research_says_so(tmp_path: Path) -> None:
    assert "not stated" in ornstein("faces", "card", "run").output
    try:
        ornstein("faces", "card", "run", "--licence", "research only", "--data", "a survey", "--research-only")
        result = swap("face.png", "face.png", "-o", tmp_path / "o.png", *AGREED)
        assert "licence research only; trained on a survey; FOR RESEARCH ONLY" in result.output
        assert "licence research only" in ornstein("faces", "verify", tmp_path / "o.png").output
    finally:
        Path("run/card.json").unlink()


def test_a_video_is_swapped(place: Path, tmp_path: Path) -> None:
    face, wall = (
        np.array(Image.open(place / name).convert("RGB").resize((260, 260))) for name in ("face.png", "wall.png")
    )
    with av.open(str(tmp_path / "t.mp4"), "w") as container:
        video = container.add_stream("libx264", Fraction(8), width=260, height=260, pix_fmt="yuv420p")
        for picture in (face, face, face, wall):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    result = swap("face.png", tmp_path / "t.mp4", "-o", tmp_path / "out.mp4", *AGREED)
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'out.mp4'}: 4 frames" in result.output
    assert "no face to swap in 1 of 4 frames: 4" in result.output
    assert "intact" in ornstein("faces", "verify", tmp_path / "out.mp4").output
    wrong = swap("face.png", tmp_path / "t.mp4", "-o", tmp_path / "out.png", *AGREED)
    assert wrong.exit_code == 2 and "is written as .mp4" in one_line(wrong)
    frame = swap("face.png", tmp_path / "t.mp4", "-o", tmp_path / "one.jpg", "--preview", 2, "--quality", 50, *AGREED)
    assert frame.exit_code == 0 and "1 face in" in frame.output, frame.output
    for more, message in (
        (("-o", tmp_path / "one.jpg", "--preview", "7"), "has 4 frames"),
        (("-o", tmp_path / "one.jpg", "--preview", "x"), "--preview 'x': the number of a frame"),
        (("-o", tmp_path / "2.mp4", "--from", "9"), "ends before 9 s"),
        (("-o", tmp_path / "2.webm", "--codec", "h264"), ".webm does not take h264"),
        (("-o", tmp_path / "2.mp4", "--index", "3"), "has more than 1 face"),
    ):
        wrong = swap("face.png", tmp_path / "t.mp4", *more, *AGREED)
        assert wrong.exit_code == 2 and message in one_line(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("face.png", "face.png"), "say where to write it"),
        (("face.png", "-o", "o.png"), "give a source and a target, not 1 files"),
        (("face.png", "face.png", "face.png", "-o", "o.png"), "not 3 files"),
        (("face.png", "face.png", "-o", "o.png", "--face", "bo.jpg"), "--face bo.jpg: all, largest or a photo"),
        (("face.png", "-o", "o.png", "--map", "face.png"), "write REF=SOURCE"),
        (("face.png", "face.png", "-o", "o.png", "--map", "a=b"), "with --map give the target alone"),
        (("face.png", "face.png", "-o", "o.png", "--batch", "p.csv"), "leave out the others"),
        (("--batch", "p.csv"), "cannot read p.csv"),
        (("none.png", "face.png", "-o", "o.png"), "there is no file none.png"),
        (("face.png", "none.png", "-o", "o.png"), "there is no file none.png"),
        (("face.png", "face.png", "-o", "face.png"), "is one of the inputs"),
        (("face.png", "face.png", "-o", "o.bmp"), "is written as .png"),
        (("face.png", "face.png", "-o", "o.png", "--blend", "glue"), "'glue' is not one of"),
        (("face.png", "face.png", "-o", "o.png", "--regions", "ears"), "'ears' is none of all, eyes"),
        (("face.png", "face.png", "-o", "o.png", "--padding", "wide"), "padding 'wide'"),
        (("face.png", "face.png", "-o", "o.png", "--index", "0"), "numbers of faces from 1 on"),
        (("face.png", "face.png", "-o", "o.png", "--index", "1", "--face", "largest"), "leave out --face"),
        (("face.png", "face.png", "-o", "o.png", "--order", "alphabetical"), "'alphabetical' is not one of"),
        (("face.png", "face.png", "-o", "o.png", "--reference", "bo.png"), "there is no file bo.png"),
        (("face.png", "face.png", "-o", "o.png", "--distance", "0.5"), "--distance does nothing here"),
        (("face.png", "face.png", "-o", "o.png", "--score", "7"), "blaze's scores are probabilities"),
        (("face.png", "face.png", "-o", "o.png", "--from", "1"), "--from does nothing here: the target is a photo"),
        (("face.png", "face.png", "-o", "o.png", "--from", "soon"), "--from 'soon': write seconds"),
        (("face.png", "face.png", "-o", "o.png", "--from", "2", "--to", "1"), "--to 1 is not after --from 2"),
        (("face.png", "face.png", "-o", "o.png", "--preview", "3"), "--preview does nothing here"),
        (("face.png", "face.png", "-o", "o.png", "--quality", "80"), "--quality does nothing here: .png loses nothing"),
        (("face.png", "face.png", "-o", "o.png", "--codec", "av1"), "--codec does nothing here"),
        (("face.png", "face.png", "-o", "o.png", "--noise", "pink"), "noise 'pink' is none of"),
        (("face.png", "face.png", "-o", "o.png", "--block-list", "none.json"), "there is no file none.json"),
    ],
)
def test_what_a_user_can_get_wrong(arguments: tuple[str, ...], message: str) -> None:
    result = swap(*arguments, *AGREED)
    assert result.exit_code == 2 and message in one_line(result)
    assert not Path("o.png").exists()


def test_what_is_no_model(tmp_path: Path) -> None:
    common = ("swap", "face.png", "face.png", "-o", tmp_path / "o.png", *AGREED)
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "there is no such folder"), (tmp_path / "empty", "it has no config.json")):
        result = ornstein(*common, "--model", folder)
        assert result.exit_code == 2 and message in one_line(result)


@pytest.mark.parametrize("module", ["dlib", "c2pa"])
def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = swap("face.png", "face.png", "-o", tmp_path / "o.png", *AGREED)
    assert result.exit_code == 2 and "pip install -e '.[faces]'" in one_line(result)
    assert list(tmp_path.iterdir()) == []


def test_help_shows_an_example() -> None:
    text = " ".join(ornstein("swap", "--help").output.split())
    assert "ornstein swap me.jpg party.jpg" in text and "--i-have-consent" in text


def test_settings_of_the_sampler_are_named_where_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace
    from typing import Any

    from ornstein.cli import swap as command

    said: list[str] = []
    monkeypatch.setattr(command, "warn", said.append)
    shaped: Any = SimpleNamespace(shaped=True)
    plain: Any = SimpleNamespace(shaped=False)
    assert (
        command.tell_idle(shaped, None, ["steps", "seed", "guidance"]) and "--steps, --guidance do nothing" in said[0]
    )
    assert command.tell_idle(shaped, 0.0, ["seed"]) and len(said) == 1
    assert not command.tell_idle(shaped, 0.5, ["steps"]) and not command.tell_idle(plain, None, ["steps"])
    assert len(said) == 1
