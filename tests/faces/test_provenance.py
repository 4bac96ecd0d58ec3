import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ornstein.errors import RunError, UserError
from ornstein.faces import provenance
from ornstein.faces.provenance import log, signing
from ornstein.faces.provenance.card import ModelCard, read_card, write_card
from ornstein.faces.provenance.consent import Consent

pytest.importorskip("c2pa", reason="the extra `faces` is not installed")

SAID = {
    "consent": "Ann Lee, a test",
    "model": {"sha256": "00ff", "licence": "CC0"},
    "label": False,
    "settings": {"seed": 3},
}
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def picture(seed: int = 0) -> Image.Image:
    pixels = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def signed(folder: Path, kind: str = ".png", target: str = "target.png") -> Path:
    picture(1).save(folder / target)
    plain, out = io.BytesIO(), io.BytesIO()
    picture().save(plain, FORMATS[kind])
    provenance.sign(plain, out, kind, f"out{kind}", folder / target, SAID)
    path = folder / f"out{kind}"
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_said_is_read_back(tmp_path: Path, kind: str) -> None:
    found = provenance.read(signed(tmp_path, kind))
    assert found.state == provenance.INTACT and found.ours and found.reasons == []
    assert found.swap == SAID
    assert found.source_type is not None and found.source_type.endswith("/compositeWithTrainedAlgorithmicMedia")


def test_the_target_is_the_parent_ingredient(tmp_path: Path) -> None:
    import c2pa

    for target in ("target.png", "target.bmp"):  # the library cannot look into the second
        store = json.loads(c2pa.Reader(str(signed(tmp_path, target=target))).json())
        manifest = store["manifests"][store["active_manifest"]]
        (ingredient,) = manifest["ingredients"]
        assert ingredient["relationship"] == "parentOf" and ingredient["title"] == target
        assert "thumbnail" not in ingredient and "thumbnail" not in manifest
        assert [a["action"] for a in manifest["assertions"][0]["data"]["actions"]] == ["c2pa.opened", "c2pa.edited"]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_pixels_are_those_that_were_given(tmp_path: Path, kind: str) -> None:
    plain = io.BytesIO()
    picture().save(plain, FORMATS[kind])
    assert Image.open(signed(tmp_path, kind)).tobytes() == Image.open(plain).tobytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_changed_pixel_is_told(tmp_path: Path, kind: str) -> None:
    path = signed(tmp_path, kind)
    data = bytearray(path.read_bytes())
    plain = io.BytesIO()
    picture().save(plain, FORMATS[kind])
    piece = plain.getvalue()[-400:-380]  # of the coded picture, which signing copies
    at = data.index(piece)
    data[at] ^= 1
    path.write_bytes(data)
    found = provenance.read(path)
    assert found.state == provenance.CHANGED and "mismatch" in found.reasons[0]


def test_a_changed_statement_is_told(tmp_path: Path) -> None:
    path = signed(tmp_path)
    data = path.read_bytes()
    assert data.count(b"Ann Lee") == 1
    path.write_bytes(data.replace(b"Ann Lee", b"Bob Lee"))
    assert provenance.read(path).state == provenance.CHANGED


def test_a_stripped_manifest_is_told(tmp_path: Path) -> None:
    path = signed(tmp_path)
    Image.open(path).save(tmp_path / "again.png")
    assert provenance.read(tmp_path / "again.png") == provenance.Provenance(provenance.UNSIGNED)


def test_another_machines_key_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = signed(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    without = provenance.read(path)  # a machine that has no key at all
    signing.credentials()
    other = provenance.read(path)
    for found in (without, other):
        assert found.state == provenance.INTACT and not found.ours and found.swap == SAID


def test_the_key_is_made_once_and_is_its_owners_alone(own_configuration: Path) -> None:
    assert signing.existing() is None
    first = signing.credentials()
    path = own_configuration / "ornstein" / signing.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [signing.FILE]
    again = signing.credentials()
    assert (again.key, again.chain) == (first.key, first.chain)
    assert "PRIVATE" not in repr(first) and "PRIVATE" not in first.root
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RunError, match="damaged: move it away"):
        signing.credentials()


def test_a_key_with_another_ones_certificate_is_refused(tmp_path: Path) -> None:
    one, two = signing.credentials(tmp_path / "1"), signing.credentials(tmp_path / "2")
    assert one.serial != two.serial
    (tmp_path / "1" / signing.FILE).write_bytes(one.key + two.chain)
    with pytest.raises(RunError, match="not this key's"):
        signing.credentials(tmp_path / "1")


def test_what_carries_no_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="of no kind that carries provenance"):
        provenance.read(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="cannot read"):
        provenance.read(tmp_path / "none.png")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[faces\]'"):
        provenance.read(tmp_path / "none.png")


@pytest.mark.parametrize("text", ["", " ", ",", "Ann", "Ann,", ", her film", "A, b", "Ann, 42", "yes"])
def test_consent_says_who_and_why(text: str) -> None:
    with pytest.raises(UserError, match="who agreed and to what"):
        Consent(text)


def test_consent_is_kept_as_it_was_said() -> None:
    assert Consent("  Ann Lee,\n her film ").statement == "Ann Lee, her film"
    with pytest.raises(UserError, match="characters"):
        Consent("Ann, " + 600 * "x")


def test_the_log_is_a_line_for_each_swap(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    log.append(path, {"a": 1})
    log.append(path, {"b": "ä"})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [{"a": 1}, {"b": "ä"}]
    (tmp_path / "x").write_bytes(b"abc")
    assert log.sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    if os.name == "posix":
        with pytest.raises(RunError, match="cannot write"):
            log.append("/dev/null/log.jsonl", {})


def test_a_model_says_its_licence(tmp_path: Path) -> None:
    assert read_card(tmp_path) == ModelCard()
    card = ModelCard("research only", "photographs of a survey", True)
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card
    assert "FOR RESEARCH ONLY" in str(card) and "RESEARCH" not in str(ModelCard())
    (tmp_path / "card.json").write_text('{"license": "?"}')
    with pytest.raises(UserError, match="unknown key"):
        read_card(tmp_path)
