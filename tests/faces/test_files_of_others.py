"""Files that a face command did not write stay as they are; links, pipes and nonsense in place of ours are refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ornstein.errors import RunError, UserError
from ornstein.faces import provenance
from ornstein.faces.identity import IdentityNet
from ornstein.faces.provenance import log
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.card import CARD, read_card
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.shape import POINTS
from ornstein.faces.swap import Order
from ornstein.faces.train.face_set import open_faces
from ornstein.faces.train.prepare import prepare
from ornstein.faces.train.shards import Row, shard_name, write_shard
from ornstein.faces.world.demo import demo

AGREED = Consent("Ann Lee, a test")
PLAN = {"size": 8, "fingerprint": "ab", "files": 1}


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))


def picture(path: Path, colour: str = "red") -> Path:
    Image.new("RGB", (32, 32), colour).save(path)
    return path


def signed(path: Path, target: Path) -> Path:
    with picture(path.with_name("plain.png")).open("rb") as plain, path.open("w+b") as out:
        provenance.sign(plain, out, ".png", path.name, target, {"consent": AGREED.statement})
    return path


def order(target: Path, out: Path, overwrite: bool = False) -> Order:
    return Order([[target]], target, out, AGREED, overwrite=overwrite)


def test_only_a_swap_of_this_machine_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("c2pa", reason="the extra `faces` is not installed")
    target = picture(tmp_path / "t.png")
    order(target, tmp_path / "new.png")
    ours = signed(tmp_path / "ours.png", target)
    order(target, ours)
    changed = tmp_path / "changed.png"
    data = bytearray(ours.read_bytes())
    data[-20] ^= 1
    changed.write_bytes(data)
    (tmp_path / "link.png").symlink_to(ours)
    (tmp_path / "film.mp4").write_bytes(b"my film")
    os.mkfifo(tmp_path / "pipe.png")
    others = [changed, picture(tmp_path / "mine.png"), *(tmp_path / n for n in ("link.png", "film.mp4", "pipe.png"))]
    for path in others:
        with pytest.raises(UserError, match="is no swap made here: write to another file, or add --overwrite"):
            order(target, path)
        order(target, path, overwrite=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another machine"))
    with pytest.raises(UserError, match="is no swap made here"):
        order(target, ours)


def test_the_log_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("mine\n")
    (tmp_path / "link").symlink_to(tmp_path / "theirs.txt")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(RunError, match=f"cannot write .*{name}"):
            log.append(tmp_path / name, {"a": 1})
    assert (tmp_path / "theirs.txt").read_text() == "mine\n"
    log.append(tmp_path / "log", {"file": "\x1b[31m\n"})
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line) == {"file": "\x1b[31m\n"} and "\x1b" not in line


@pytest.mark.parametrize("content", ["{}", "[1]", "my notes", '{"size": 64}'])
def test_an_index_of_something_else_is_kept(tmp_path: Path, content: str) -> None:
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    (tmp_path / "photos").mkdir()
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json is not of a set of faces: choose another --out"):
        prepare(tmp_path / "photos", tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "index.json").read_text() == content


def test_photos_without_a_face_leave_nothing_that_blocks_another_call(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    (tmp_path / "photos").mkdir()
    picture(tmp_path / "photos" / "a.png")
    for _ in range(2):
        with pytest.raises(UserError, match="no face found in any photo"):
            prepare(tmp_path / "photos", tmp_path / "out", workers=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_replaced_photo_of_the_same_size_is_noticed_on_resuming(tmp_path: Path) -> None:
    """Name and size in bytes are the same; the picture is another one."""
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    from ornstein.data.sources import open_source
    from ornstein.faces.train.prepare import _plan

    (tmp_path / "photos").mkdir()
    plans = []
    for colour in (b"\xff\0\0", b"\0\xff\0"):
        (tmp_path / "photos" / "a.ppm").write_bytes(b"P6 32 32 255\n" + 1024 * colour)
        with open_source(tmp_path / "photos") as listing:
            plans.append(_plan(tmp_path / "photos", tmp_path / "out", 64, listing.entries))
    assert plans[0].names == plans[1].names and plans[0].fingerprint != plans[1].fingerprint


@pytest.mark.parametrize("name", ["report.html", "clip.mp4", "swaps.png"])
def test_a_demo_replaces_no_file_of_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is not of a demo"):
        demo(tmp_path, minutes=0.01, size=32, people=2, photos=64, frames=2)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("x, y", "who agreed is 'x' in 'x, y'"),
        ("Ann, y", "to what is 'y'"),
        (", a card", "who agreed is ''"),
        ("12, a card", "who agreed is '12'"),
        ("Ann Lee", "with a comma between"),
    ],
)
def test_the_rule_of_consent_is_stated(statement: str, words: str) -> None:
    with pytest.raises(UserError, match="consent must say who agreed and to what") as caught:
        Consent(statement)
    assert words in str(caught.value) and "Ann Lee and Bo Diaz" in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        {"licence": 3},
        {"research_only": "yes"},
        {"data": ["a"]},
        {"owner": "me"},
    ],
)
def test_cards_of_nonsense_are_refused(tmp_path: Path, edit: dict[str, object]) -> None:
    (tmp_path / CARD).write_text(json.dumps({"licence": "CC0"} | edit))
    with pytest.raises(UserError, match=r"card\.json: "):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"embedding": 3, "width": 10**9, "multipliers": [1, 2]},
        {"embedding": 10**12, "width": 8, "multipliers": [1, 2]},
        {"embedding": 3, "width": 8, "multipliers": [1, 10**6]},
        {"embedding": 3, "width": 8, "multipliers": [1] * 5},
        {"embedding": "3", "width": 8, "multipliers": [1, 2]},
        {"embedding": 3, "width": 8.5, "multipliers": [1, 2]},
        {"embedding": 3, "width": 8, "multipliers": []},
        {"embedding": 3, "width": 8, "multipliers": [1, 2], "more": 1},
    ],
)
def test_recognisers_of_other_sizes_are_refused_before_anything_is_allocated(
    tmp_path: Path, config: dict[str, object]
) -> None:
    IdentityNet(3, width=8, multipliers=(1, 2)).save(tmp_path)
    (tmp_path / "identity.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is not a recogniser of faces"):
        IdentityNet.load(tmp_path)


@pytest.mark.parametrize("rows", [[[float("nan")] * 2], [], [1.0], [["a"]]])
def test_block_lists_of_nonsense_are_refused(tmp_path: Path, rows: object) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"format": 1, "threshold": 0.6, "embeddings": rows}))
    with pytest.raises(UserError, match="no list of protected faces"):
        BlockList.load(tmp_path / "list.json")


def shard(folder: Path, **header: object) -> Path:
    """A shard of one face; its header changed."""
    path = folder / shard_name(0, 1)
    image, points = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(POINTS, 3)
    row = Row("a.png", "a", image, torch.zeros(4), torch.zeros(5, 2), torch.zeros(2, 3), points, 1.0)
    write_shard(path, [row], [], PLAN, 4)
    if header:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            text = json.loads(file.metadata()["faces"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, {"faces": json.dumps(text | header)})
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"names": ["a.png"] * 10**6, "people": ["a"] * 10**6},
        {"plan": {"size": 10**6}},
        {"plan": {"size": "8"}},
        {"plan": [8]},
        {"plan": PLAN | {"size": 16}},
        {"names": 3},
        {"people": [None]},
        {"skipped": [1]},
        {"format": {}},
    ],
)
def test_shards_of_nonsense_are_refused(tmp_path: Path, header: dict[str, object]) -> None:
    shard(tmp_path, **header)
    with pytest.raises(UserError, match=r"shard|format|damaged"):
        open_faces(tmp_path)


def test_a_pipe_in_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    assert len(open_faces(shard(tmp_path).parent)) == 1
    shard(tmp_path).unlink()
    os.mkfifo(tmp_path / shard_name(0, 1))
    with pytest.raises(UserError, match="not a regular file"):
        open_faces(tmp_path)
