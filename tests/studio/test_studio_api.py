"""The studio from scripts, through gradio_client: names, results, what users get wrong, many at once."""

import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ornstein.cli import app

client_module = pytest.importorskip("gradio_client", reason="the extra `studio` is not installed")

NAMES = {
    "/train_start", "/train_stop", "/train_resume", "/train_status", "/generate", "/compare_steps", "/noise",
    "/fit_noise", "/clip_samples", "/find_faces", "/swap", "/preview", "/likelihood", "/rank", "/evaluate",
    "/rename_run", "/delete_run", "/personalize_start", "/personalize_files", "/edit",
}  # fmt: skip


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    found = client_module.Client(served.url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    yield found
    found.close()


def drawn(client, run: str, *, seed: int = 0, n: int = 3, steps: int = 3, label: str = "each in turn", **more):
    asked = {"solver": "automatic", "guidance": 1.0} | more
    return client.predict(run=run, label=label, steps=steps, seed=seed, n=n, **asked, api_name="/generate")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_names_of_the_api_are_these(client) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == NAMES


def test_the_same_seed_is_the_same_picture_as_on_the_command_line(client, served, tmp_path: Path) -> None:
    run = str(served.home / "digits")
    _, gallery, zipped, command, *_ = drawn(client, run, seed=7, n=3, steps=4, label="5", guidance=2.0)
    with zipfile.ZipFile(zipped) as archive:
        names = archive.namelist()
        pictures = [Image.open(io.BytesIO(archive.read(name))) for name in names]
        said = [json.loads(picture.text["Comment"]) for picture in pictures]
    assert names == [f"digits-seed7-{i:05d}.png" for i in range(3)]
    words = command.split()
    assert words[0] == "ornstein" and said[2]["command"] == command and said[2]["sample"] == 2
    result = CliRunner().invoke(app, [*words[1:], "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["settings"]["model"] == said[0]["model"]
    for i, picture in enumerate(pictures):
        assert np.array_equal(np.asarray(picture), pixels(tmp_path / f"{i:05d}.png"))
        assert np.array_equal(np.asarray(picture), pixels(gallery[i]["image"]))
    other = drawn(client, run, seed=8, n=1, steps=4, label="5", guidance=2.0)[1]
    assert not np.array_equal(pixels(other[0]["image"]), np.asarray(pictures[0]))


def test_clips_are_films_that_say_how_they_were_made(client, served) -> None:
    import av

    _, gallery, *_ = drawn(client, str(served.home / "films"), n=1, steps=2)
    with av.open(gallery[0]["video"]) as film:
        assert json.loads(film.metadata["comment"])["seed"] == 0
        assert sum(1 for _ in film.decode(video=0)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "/etc"}, "no run '/etc' is open here"),
        ({"run": "digits", "n": 65}, "greater than maximum value 64"),
        ({"run": "digits", "steps": 0}, "less than minimum value 1"),
        ({"run": "digits", "seed": -1}, "a seed is a whole number from 0 on"),
        ({"run": "digits", "solver": "tuned"}, "has no solver tuned for 3 steps"),
        ({"run": "films", "n": 9}, "samples must lie between 1 and 8"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(client, served, change, message) -> None:
    asked = {"run": "digits"} | change
    run = asked.pop("run")
    with pytest.raises(Exception, match=message.replace("(", r"\(")) as told:
        drawn(client, run if run.startswith("/") else str(served.home / run), **asked)
    assert "Traceback" not in str(told.value) and "\n" not in str(told.value).strip()


@pytest.mark.parametrize(
    "change", [{"steps": "many"}, {"n": [1]}, {"seed": {"a": 1}}, {"solver": 7}, {"guidance": None}]
)
def test_a_malformed_request_is_answered_with_a_sentence(client, served, change) -> None:
    with pytest.raises(Exception, match=r"\w+ \w+ \w+") as refused:
        drawn(client, str(served.home / "digits"), **change)
    text = str(refused.value)
    assert "Traceback" not in text and "show_error" not in text and text.strip() != "None"


@pytest.mark.slow
def test_fifty_requests_of_two_users_are_all_answered_each_with_its_own(client, served) -> None:
    run = str(served.home / "digits")
    other = client_module.Client(served.url, verbose=False, download_files=client.output_dir)
    try:
        jobs = [
            (seed, (client, other)[seed % 2].submit(run, "each in turn", "ddim", 1, 1.0, seed, 1, api_name="/generate"))
            for seed in range(50)
        ]
        answers = {seed: job.result(timeout=300) for seed, job in jobs}
    finally:
        other.close()
    assert all(f"--seed {seed} " in answer[3] for seed, answer in answers.items())
    pictures = {seed: pixels(answer[1][0]["image"]).tobytes() for seed, answer in answers.items()}
    assert len(set(pictures.values())) == 50
    for seed in (0, 49):
        again = drawn(client, run, seed=seed, n=1, steps=1, solver="ddim")[1]
        assert pixels(again[0]["image"]).tobytes() == pictures[seed]


def test_noise_of_a_name_and_noise_that_was_fitted(client, served) -> None:
    said, *_ = client.predict("ar1", 0.5, 8, api_name="/noise")
    assert "AR1(" in said
    said, file, family, _ = client.predict("drifting-textures", None, 4, 16, "spectral", api_name="/fit_noise")
    assert family == "fitted" and "SpectralAR1" in said
    config = json.loads(Path(file["value"] if isinstance(file, dict) else file).read_text())
    assert config["type"] == "SpectralAR1"
    said, *_ = client.predict("fitted", 0.5, 4, api_name="/noise")
    assert "SpectralAR1" in said
    said, *_ = client.predict(str(served.home / "films"), "white", 0.0, 2, 0, api_name="/clip_samples")
    assert "4 clips each" in said and "AR1" in said
    with pytest.raises(Exception, match="is a model of images"):
        client.predict(str(served.home / "digits"), "white", 0.0, 2, 0, api_name="/clip_samples")


def swapped(client, served, consent: str, chosen: list[str], target: str = "two.png", **more):
    send = client_module.handle_file
    asked = {"steps": 1, "identity": 1.0, "guidance": "1", "seed": 0, "label": True} | more
    return client.predict(
        run=str(served.home / "faces"),
        sources=[send(str(served.pictures / "source.png"))],
        target=send(str(served.pictures / target)),
        consent=consent,
        chosen=chosen,
        **asked,
        api_name="/swap",
    )


def file_of(answer) -> str:
    return answer["value"] if isinstance(answer, dict) else answer


def test_a_swap_changes_the_face_that_was_chosen_and_says_who_agreed(client, served) -> None:
    send = client_module.handle_file
    boxes, _, said = client.predict(send(str(served.pictures / "two.png")), api_name="/find_faces")
    assert "2 faces found" in said and len(boxes["annotations"]) == 2
    said, _, _, file, provenance = swapped(client, served, "Ann Lee, a test", ["face 2"], label=False)
    assert "Swapped 1 face" in said
    before, after = pixels(served.pictures / "two.png").astype(int), pixels(file_of(file)).astype(int)
    changed = np.abs(after - before).max(2) > 8
    assert not changed[:, :80].any() and changed[50:110, 150:210].mean() > 0.1
    assert "signed; not changed since" in provenance and "Ann Lee, a test" in provenance
    assert "removed when it was made" in provenance


def test_regions_and_a_frame_before_the_whole(client, served, films, tmp_path) -> None:
    whole = pixels(file_of(swapped(client, served, "Ann Lee, a test", ["face 2"], label=False)[3])).astype(int)
    mouth = pixels(
        file_of(swapped(client, served, "Ann Lee, a test", ["face 2"], label=False, regions=["mouth"])[3])
    ).astype(int)
    before = pixels(served.pictures / "two.png").astype(int)
    area = [int((np.abs(each - before).max(2) > 4).sum()) for each in (whole, mouth)]
    assert 0 < area[1] < 0.4 * area[0]
    with pytest.raises(Exception, match="padding 'wide'"):
        swapped(client, served, "Ann Lee, a test", [], padding="wide")
    with pytest.raises(Exception, match="choose at least one region"):
        swapped(client, served, "Ann Lee, a test", [], regions=[])
    film = films.write(tmp_path / "two.mp4", [before.astype(np.uint8)] * 6)
    send = client_module.handle_file
    asked = {
        "run": str(served.home / "faces"),
        "sources": [send(str(served.pictures / "source.png"))],
        "target": send(str(film)),
        "consent": "Ann Lee, a test",
        "chosen": [],
        "steps": 1,
        "identity": 1.0,
        "guidance": "1",
        "seed": 0,
        "label": True,
    }
    said, slider = client.predict(**asked, frame="3", api_name="/preview")
    assert "Previewed frame 3 with 2 faces" in said
    assert len(slider["value"] if isinstance(slider, dict) else slider) == 2
    with pytest.raises(Exception, match="has 6 frames"):
        client.predict(**asked, frame="9", api_name="/preview")
    said, *_ = client.predict(**asked, begin="0.1", api_name="/swap")
    assert "Swapped 4 frames" in said


def test_nothing_is_swapped_without_consent_or_faces(client, served) -> None:
    before = {path.name for path in served.home.iterdir()}
    for consent in ("", "yes", "Ann"):
        with pytest.raises(Exception, match="consent must say who agreed"):
            swapped(client, served, consent, [])
    with pytest.raises(Exception, match=r"no face found in .*nobody\.png"):
        swapped(client, served, "Ann Lee, a test", [], target="nobody.png")
    with pytest.raises(Exception, match="face 7"):
        swapped(client, served, "Ann Lee, a test", ["face 7"])
    assert {path.name for path in served.home.iterdir()} - before <= {"ornstein-swaps.jsonl"}


def test_bits_of_an_image_are_those_of_the_library(client, served) -> None:
    import torch

    import ornstein as orn
    from ornstein.evaluation.held_out import bits_of_images

    run, send = str(served.home / "digits"), client_module.handle_file
    with Image.open(served.pictures / "grey.png") as image:
        square = image.crop((5, 0, 35, 30)).resize((8, 8), Image.Resampling.LANCZOS, reducing_gap=None)
    said, seen, _ = client.predict(run, send(str(served.pictures / "grey.png")), "continuous", api_name="/likelihood")
    small = pixels(seen)[::20, ::20]
    assert np.abs(small.astype(int) - np.asarray(square).astype(int)).max() <= 2
    expected = bits_of_images(orn.load(run), torch.from_numpy(small.copy())[None, None], "continuous")
    assert f"{expected.mean:.3f} bits/dim" in said


def test_a_set_is_ranked_by_its_bits(client, served) -> None:
    said, most, least = client.predict(str(served.home / "digits"), "digits", None, 4, api_name="/rank")
    values = [float(each["caption"].split(" ")[0]) for each in most]
    assert len(values) == 4 and values == sorted(values) and f"from {values[0]:.3f} to {values[-1]:.3f}" in said
    assert [each["caption"] for each in least] == [each["caption"] for each in most][::-1]


def bomb(path: Path) -> Path:
    """A picture of 900 million pixels in a small file, in a zip."""
    picture = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(picture, "PNG")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", picture.getvalue())
        archive.writestr("../../outside.png", b"x")
        archive.writestr("empty.png", b"\0" * (600 * 2**20 // 64))
    return path


def test_what_is_no_image_and_what_is_a_bomb_is_refused_in_a_line(client, served, tmp_path: Path) -> None:
    run, send = str(served.home / "digits"), client_module.handle_file
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(Exception, match=r"text\.png cannot be used: not an image"):
        client.predict(run, send(str(tmp_path / "text.png")), "continuous", api_name="/likelihood")
    with pytest.raises(Exception, match=r"no usable image in .*3 skipped"):
        client.predict(run, "", send(str(bomb(tmp_path / "bomb.zip"))), 4, api_name="/rank")
    assert not list(served.cache.rglob("outside.png"))


def test_a_name_is_no_path_and_a_size_has_a_limit(served, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    address = f"{served.url}gradio_api/upload"
    for name in ("../../../evil.png", "/tmp/evil.png", "..\\..\\evil.png", "a\0b.png", "x" * 5000 + ".png"):
        answer = httpx.post(address, files={"files": (name, b"x")}, timeout=60)
        for path in answer.json() if answer.status_code == 200 else []:
            assert Path(path).resolve().is_relative_to(served.cache.resolve()), name
    large = httpx.post(address, files={"files": ("large.zip", b"\0" * (3 * 2**20))}, timeout=60)
    assert large.status_code == 413
    # os.walk, for folders of closed pages are being deleted meanwhile
    assert not [name for _, _, names in os.walk(served.cache) for name in names if name == "large.zip"]
    for path in ("/etc/passwd", str(tmp_path)):
        assert httpx.get(f"{served.url}gradio_api/file={path}", timeout=60).status_code in (403, 404)


def settings_of_form(**changed):
    """Values of the form of the page Train, in its order."""
    from ornstein.studio import forms
    from ornstein.studio.train import _BASIC, _MORE
    from ornstein.training.settings import Settings

    names = (*_BASIC, *_MORE)
    components = dict(zip(names, forms.components(Settings, names), strict=True))
    return [changed.get(name, component.value) for name, component in components.items()]


def test_a_training_is_started_followed_stopped_and_refused(client, served) -> None:
    def start(name: str, data: str = "digits", **settings):
        values = settings_of_form(**{"net": "xs", "batch": 4} | settings)
        return client.predict(name, data, None, 5000, "steps", *values, api_name="/train_start")

    for name, data, message in (
        ("../outside", "digits", "cannot be the name of a run"),
        ("digits", "digits", "there is a run 'digits' already"),
        ("new", " ", "say what to train on"),
    ):
        with pytest.raises(Exception, match=message):
            start(name, data)
    assert not (served.home.parent / "outside").exists()
    start("followed")
    run = str(served.home / "followed")

    def state(*wanted: str) -> dict:
        for _ in range(600):
            found = client.predict(run, api_name="/train_status")
            if found["state"] in wanted:
                return found
            time.sleep(0.2)
        raise AssertionError(found)

    found = state("training")
    assert found["steps"] == 5000 and 0 < found["step"] < 5000 and found["left"] > 0
    with pytest.raises(Exception, match="is under way"):
        client.predict(run, 0, api_name="/train_resume")
    with pytest.raises(Exception, match="is being trained: stop it first"):
        client.predict(run, "moved", api_name="/rename_run")
    with pytest.raises(Exception, match="is being trained: stop it first"):
        client.predict(run, "followed", api_name="/delete_run")
    client.predict(run, api_name="/train_stop")
    assert state("stopped")["step"] >= found["step"]
    with pytest.raises(Exception, match="there is nothing to stop"):
        client.predict(run, api_name="/train_stop")
    with pytest.raises(Exception, match="to delete followed and everything in it, type its name"):
        client.predict(run, "folowed", api_name="/delete_run")
    menu = client.predict(run, " moved ", api_name="/rename_run")
    assert menu["value"] == str(served.home / "moved") and not (served.home / "followed").exists()
    menu = client.predict("moved", "moved", api_name="/delete_run")
    assert not (served.home / "moved").exists() and "moved" not in dict(menu["choices"])
    with pytest.raises(Exception, match="Batch must be at least 1, not -4"):
        start("refused", batch=-4)
    assert not (served.home / "refused").exists()
    start("wrong", "/no/such/folder")
    run = str(served.home / "wrong")
    assert "no such folder or file: /no/such/folder" in state("failed")["reason"]


def edited(client, served, tmp_path: Path, **change):
    """An edit of an 8x8 picture whose right half is painted."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:, 4:] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(layer).save(tmp_path / "layer.png")
    sent = {
        "background": client_module.handle_file(tmp_path / "picture.png"),
        "layers": [client_module.handle_file(tmp_path / "layer.png")],
        "composite": None,
    }
    asked = {
        "run": str(served.home / "digits"), "picture": sent, "task": "fill what is painted", "operator": "blur:1",
        "noise_std": 0.1, "factor": 2, "strength": 0.5, "label": "3", "prompt": "", "negative": "",
        "method": "moments", "n": 2, "steps": 2, "guidance": 1, "seed": 0,
    } | change  # fmt: skip
    return picture, client.predict(**asked, api_name="/edit")


def test_a_painted_part_is_filled_and_the_rest_kept(client, served, tmp_path: Path) -> None:
    picture, (status, answers, spread) = edited(client, served, tmp_path)
    made = [pixels(each["image"]) for each in answers]
    assert "2 answers" in status and all(np.array_equal(each[:, :4], picture[:, :4]) for each in made)
    assert not np.array_equal(*made) and pixels(spread)[:, :4].max() == 0
    for task in ("restore", "enlarge", "vary"):
        status, answers, _ = edited(client, served, tmp_path, task=task, n=1)[1]
        assert pixels(answers[0]["image"]).shape == ((16, 16) if task == "enlarge" else (8, 8)), task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": None}, "give a picture first"),
        ({"task": "restore", "operator": "sharpen"}, "unknown operator"),
        ({"task": "colour"}, "no colours to give"),
        ({"n": 0}, "less than minimum value 1"),
        ({"label": "cat"}, "no class 'cat'"),
        ({"label": "none", "guidance": 2}, "guidance strengthens a condition"),
        ({"run": "/etc"}, "no run '/etc' is open here"),
    ],
)
def test_what_cannot_be_edited_is_said_in_a_line(client, served, tmp_path: Path, change, message) -> None:
    with pytest.raises(Exception, match=message) as told:
        edited(client, served, tmp_path, **change)
    assert "Traceback" not in str(told.value)


def personalised(client, served, **changed) -> str:
    """Press Personalise; the values of the form are its defaults but for those given."""
    asked = {"name": "dog", "base": str(served.home / "words"), "folder": str(served.pictures), "upload": None}
    asked |= {"prompt": "a photo of sks dog"} | changed
    names = [
        p["parameter_name"]
        for p in client.view_api(return_format="dict")["named_endpoints"]["/personalize_start"]["parameters"]
    ]
    assert names[:5] == list(asked)[:5]
    return client.predict(*asked.values(), api_name="/personalize_start")


def test_a_personalisation_is_the_command_of_its_form(client, served, monkeypatch) -> None:
    from ornstein.studio.trainings import Trainings

    begun = []
    monkeypatch.setattr(Trainings, "_begin", lambda self, run, command, words: begun.append((run, command, words)))
    send = client_module.handle_file
    personalised(client, served, name="cat", upload=[send(str(served.pictures / "grey.png"))])
    run, command, words = begun[0]
    assert command == "personalize" and words[0] == str(served.home / "words")
    assert words[words.index("--images") + 1] == str(run / "pictures") and len(list((run / "pictures").iterdir())) == 1
    assert words[words.index("--prompt") + 1] == "a photo of sks dog"
    for changed, message in (
        ({"prompt": " "}, "give a prompt with a word"),
        ({"base": ""}, "say what to personalise"),
        ({"folder": ""}, "give pictures"),
        ({"name": "../x"}, "cannot be the name"),
        ({"name": "cat"}, "there is a run 'cat' already"),
    ):
        with pytest.raises(Exception, match=message):
            personalised(client, served, **{"name": "fox"} | changed)
    with pytest.raises(Exception, match="has no files for other programs"):
        client.predict(str(served.home / "digits"), api_name="/personalize_files")
    (run / "config.json").write_text("{}")
    (run / "lora_kohya.safetensors").write_bytes(b"numbers")
    files = client.predict(str(run), api_name="/personalize_files")
    assert [Path(f).name for f in files] == ["cat-lora_kohya.safetensors"]
    client.predict(str(run), "cat", api_name="/delete_run")
