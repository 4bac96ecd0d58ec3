"""Clips from real mp4 files to sampled mp4 files, by the commands alone."""

import json
from importlib import import_module
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.checkpoint import read_config
from ornstein.noise import Toeplitz, parse
from running import done, ornstein, refused

FRAMES, SIZE = 6, 16


def film(path: Path, frames: int, seed: int = 0, size: int = 24) -> None:
    """A disc that crosses a dim picture, H.264 where there is one."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 90, (size, size, 3))
    at, step = rng.uniform(6, size - 6, 2), rng.uniform(-1.5, 1.5, 2)
    y, x = np.mgrid[:size, :size]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", 12)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for k in range(frames):
            cy, cx = at + k * step
            disc = ((y - cy) ** 2 + (x - cx) ** 2 < 16)[..., None]
            picture = np.where(disc, 230, ground).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten films of 13 frames, two clips each; one that is cut in two, and a text."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(10):
        film(folder / f"{i}.mp4", 2 * FRAMES + 1, seed=i)
    whole = (folder / "0.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no film")
    return folder


@pytest.fixture(scope="module")
def noise(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("noise") / "noise.json"
    output = done("fit-noise", films, "--frames", FRAMES, "--size", SIZE, "--out", out)
    assert "of 20 clips" in output and "skipped broken.mp4" in output
    return out


def training(films: Path, noise: Path, out: Path) -> tuple[object, ...]:
    return (
        "train", "--data", films, "--frames", FRAMES, "--size", SIZE, "--net", "xs", "--noise", noise, "--given-frames",
        "--steps", 3, "--batch", 2, "--checkpoint-every", 2, "--sample-every", 2, "--out", out,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(films: Path, noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "films"
    output = done(*training(films, noise, out))
    assert "clips of (3, 6, 16, 16)" in output and "1 bad files skipped" in output
    return out


def test_the_fitted_noise_is_that_of_the_films_and_goes_into_the_checkpoint(noise: Path, trained: Path) -> None:
    fitted = parse(str(noise), FRAMES)
    assert isinstance(fitted, Toeplitz)
    assert 0.4 < float(fitted.dense()[0, 1]) < 0.99  # a disc of 8 pixels moves by at most 2 a frame
    model = orn.load(trained)
    assert model.process.noise == fitted
    z = torch.randn(2, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.process.noise.color(z), fitted.color(z))
    assert not torch.equal(model.process.noise.color(z), z)
    assert json.loads((trained / "config.json").read_text())["noise"] == json.loads(noise.read_text())


def test_the_report_plays_clips_and_names_the_broken_film(trained: Path) -> None:
    report = (trained / "report.html").read_text()
    assert "broken.mp4" in report and "notes.txt" not in report
    assert "Clips the model made, beside real ones" in report and "data:image/" in report
    assert len(frames_of(trained / "samples.mp4")) == FRAMES
    assert Image.open(trained / "samples.png").size == (4 * 17 * FRAMES, 4 * 17 * 16)
    assert (trained / "progress" / "step-000002.png").is_file()


def test_sample_writes_films_gifs_and_a_sheet(trained: Path, tmp_path: Path) -> None:
    done("sample", trained, "-n", 2, "--steps", 2, "--fps", 5, "--out", tmp_path / "a")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["00000.gif", "00000.mp4", "00001.gif", "00001.mp4", "sheet.png"]
    shown = frames_of(tmp_path / "a" / "00000.mp4")
    assert len(shown) == FRAMES and shown[0].shape == (64, 64, 3)
    assert getattr(Image.open(tmp_path / "a" / "00001.gif"), "n_frames", 1) == FRAMES
    done("sample", trained, "-n", 1, "--steps", 2, "--fps", 5, "--out", tmp_path / "b")
    again = frames_of(tmp_path / "b" / "00000.mp4")
    assert np.abs(np.stack(shown).astype(int) - np.stack(again)).mean() < 0.1  # the same clip alone


def test_long_clips_begin_as_short_ones_do(trained: Path, tmp_path: Path) -> None:
    # the solver that was chosen for the model makes whole samples alone
    done("sample", trained, "-n", 1, "--steps", 2, "--solver", "flow-3m", "--out", tmp_path / "short")
    output = done("sample", trained, "-n", 1, "--steps", 2, "--frames", 12, "--overlap", 2, "--out", tmp_path / "long")
    assert "12 frames, 6 at a time" in output and "6/6 steps flow-3m, t = 0.000" in output  # 3 windows of 2 steps
    short, long = (np.stack(frames_of(tmp_path / k / "00000.mp4")).astype(int) for k in ("short", "long"))
    assert len(long) == 12
    assert np.abs(long[:FRAMES] - short).mean() < 4  # but for the coding


def test_given_frames_are_kept(trained: Path, films: Path, tmp_path: Path) -> None:
    output = done(
        "sample", trained, "-n", 2, "--steps", 2, "--given", films, "--first", 2, "--last", 1, "--out", tmp_path
    )
    assert "2 first and 1 last" in output and "2/2 steps flow-3m, t = 0.000" in output
    known, _ = orn.data.open_clips(films, FRAMES, SIZE).batch([0, 1])
    for i in range(2):
        frames = [orn.data.to_uint8(f) for f in known[i].unbind(1)]
        made = frames_of(tmp_path / f"{i:05d}.mp4")
        for k in (0, 1, FRAMES - 1):
            centre = made[k][2::4, 2::4].astype(int)  # of each pixel drawn 4 x 4
            assert np.abs(centre - frames[k].permute(1, 2, 0).numpy()).mean() < 12, k


def test_a_run_of_clips_resumes_to_the_same_bits(
    trained: Path, films: Path, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(import_module("ornstein.training.jobs"), "preview", stop)  # at step 2 of 3
        stopped = ornstein(*training(films, noise, out))
    assert stopped.exit_code == 130 and "--resume" in stopped.stderr
    assert read_config(out)["training"]["step"] == 2
    refused(ornstein("train", "--data", films, "--frames", FRAMES, "--out", out), "already holds a run", "--resume")
    refused(ornstein("train", "--out", out, "--resume", "--noise", "ar1:0.5"), "noise")
    done("train", "--out", out, "--resume")
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (trained / file).read_bytes(), file


def test_a_model_preconditioned_by_the_covariance_of_the_data(films: Path, noise: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done(
        "train", "--data", films, "--frames", FRAMES, "--size", SIZE, "--net", "xs", "--noise", "ar1:0.9",
        "--data-noise", noise, "--centre", "--steps", 2, "--batch", 2, "--out", out,
    )  # fmt: skip
    model = orn.load(out)
    assert model.prediction == "edm" and model.data_covariance == parse(str(noise), FRAMES)
    schedule = model.process.schedule
    assert isinstance(schedule, orn.schedules.Shifted)
    assert model.data is not None and model.data_covariance is not None
    shift = orn.noise.log_snr_shift(model.process.noise, model.data_covariance, model.data.shape)
    assert schedule.log_snr_shift == pytest.approx(-shift) and abs(shift) > 0.05
    assert float(schedule.log_snr(1.0)) == pytest.approx(-10)
    done("sample", out, "-n", 1, "--steps", 2, "--out", tmp_path / "samples")
    common = ("train", "--data", films, "--size", SIZE, "--out", tmp_path / "no")
    refused(ornstein(*common, "--frames", FRAMES, "--centre"), "--centre", "--data-noise")
    refused(ornstein("train", "--data", "digits", "--data-noise", noise, "--out", tmp_path / "no"), "--frames")
    refused(ornstein(*common, "--frames", FRAMES, "--data-noise", "white"), "covariances over frames")
    assert not (tmp_path / "no").exists()


def untrained(conditioning: bool, classes: tuple[str, ...] = ()) -> orn.Denoiser:
    """A model of grey clips as it is before its first step."""
    net = orn.nets.VideoUNet.preset(
        "xs", channels=1, size=SIZE, frames=FRAMES, classes=len(classes), conditioning=conditioning
    )
    about = orn.Data((1, FRAMES, SIZE, SIZE), classes)
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=about)


def test_clips_go_on_as_what_the_given_ones_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own class where the model knows it, not each in turn; one that is asked for comes first."""
    _, labels = orn.data.open_clips("moving-digits", FRAMES, SIZE).batch(range(12))
    assert labels is not None and labels.tolist() != [i % 10 for i in range(12)]
    asked: list[torch.Tensor | None] = []

    def spy(
        d: object, known: torch.Tensor, mask: object, *, cond: dict[str, torch.Tensor], **_: object
    ) -> torch.Tensor:
        asked.append(cond["label"])
        return known

    monkeypatch.setattr(import_module("ornstein.cli.clips"), "sample_given", spy)
    run, none = tmp_path / "run", tmp_path / "none"
    untrained(True, tuple("0123456")).save(run)
    untrained(True).save(none)
    go_on = ("--given", "moving-digits", "-n", 12, "--first", 2, "--out", tmp_path / "out")
    done("sample", run, *go_on)
    done("sample", run, *go_on, "--class", 3)
    done("sample", none, *go_on)
    own, one, without = asked
    assert own is not None and own.tolist() == [k if k < 7 else -1 for k in labels.tolist()]
    assert one is not None and one.tolist() == [3] * 12
    assert without is None
    film(tmp_path / "film.mp4", FRAMES)
    refused(
        ornstein("sample", run, "--given", tmp_path / "film.mp4", "--first", 2, "--guidance", 2),
        "no classes",
        "--class",
    )


def test_noise_of_a_colour_and_clips_in_tiles(tmp_path: Path) -> None:
    run, table = tmp_path / "run", tmp_path / "table.json"
    untrained(True).save(run)
    table.write_text("[[0.0, 1.0]]")
    out = {}
    for name, options in {
        "blue": ("--coloured", "blue"),
        "table": ("--coloured", table, "--solver", "ddim"),
        "none": ("--solver", "ddim"),
        "long": ("--coloured", "settling", "--frames", 12, "--size", f"{SIZE + 7}x{SIZE}", "--tiled"),
    }.items():
        out[name] = tmp_path / name
        done("sample", run, "-n", 1, "--steps", 2, "--out", out[name], *options)
    pictures = {name: Image.open(folder / "sheet.png").tobytes() for name, folder in out.items()}
    assert pictures["blue"] == pictures["table"] != pictures["none"]
    frames = Image.open(out["long"] / "00000.gif")
    assert frames.n_frames == 12 and frames.width * SIZE == frames.height * (SIZE + 7)  # pyright: ignore[reportAttributeAccessIssue]
    to = ("sample", run, "-n", 1, "--out", tmp_path / "no")
    refused(ornstein(*to, "--coloured", "blue", "--solver", "heun"), "--coloured", "heun")
    table.write_text("[[0.0, 2.0]]")
    refused(ornstein(*to, "--coloured", table), "each in [0, 1]")
    refused(ornstein(*to, "--coloured", tmp_path / "none.json"), "none.json", "settling")
    refused(ornstein(*to, "--tiled"), "--tiled", "above that of the training")
    refused(ornstein(*to, "--size", 2 * SIZE), "--tiled")
    refused(ornstein(*to, "--size", 2 * SIZE, "--tiled", "--given", "moving-digits"), "leave out --tiled")


def test_a_transformer_of_clips(tmp_path: Path) -> None:
    """The space-time transformer is trained, continues and makes longer clips as the U-Net does."""
    run = tmp_path / "run"
    common = ("--frames", 4, "--size", 16, "--batch", 2, "--steps", 2, "--no-report")
    done("train", "--data", "moving-digits", *common, "--net", "dit:xs", "--given-frames", "--out", run)
    done("sample", run, "-n", 1, "--steps", 2, "--frames", 7, "--out", tmp_path / "long")
    assert Image.open(tmp_path / "long" / "00000.gif").n_frames == 7  # pyright: ignore[reportAttributeAccessIssue]


def test_mistakes(films: Path, noise: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ("train", "--size", SIZE, "--out", out)
    refused(ornstein(*common, "--data", films, "--frames", 20), "films", "too short: 13 frames, a clip has 20")
    refused(
        ornstein(*common, "--data", films, "--frames", 8, "--noise", noise), "made for 6 frames, not 8", "--frames 8"
    )
    refused(ornstein(*common, "--data", films), "no usable image", "to train on the videos there, give --frames")
    for folder in ("empty", "texts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no film")
    refused(ornstein(*common, "--data", tmp_path / "empty", "--frames", 6), "empty")
    refused(ornstein(*common, "--data", tmp_path / "texts", "--frames", 6), "texts")
    assert not out.exists()

    shorts = tmp_path / "shorts"
    film(shorts / "short.mp4", 3)
    refused(ornstein("sample", trained, "--given", shorts, "--first", 2), "too short: 3 frames, a clip has 6")
    refused(ornstein("sample", trained, "--given", films, "--first", 5, "--last", 4), "5", "4", "6")
    refused(ornstein("sample", trained, "--frames", 12, "--overlap", 6), "overlap 6", "window 6")

    untrained(conditioning=False).save(tmp_path / "without")
    for asked in (("--given", films, "--first", 2), ("--frames", 12)):
        refused(ornstein("sample", tmp_path / "without", *asked), "without", "--given-frames")


def test_clips_are_learned_in_the_latents_of_an_autoencoder_of_their_frames(films: Path, tmp_path: Path) -> None:
    clips = ("--data", films, "--frames", FRAMES, "--batch", 2, "--steps", 2)
    coder, run = tmp_path / "frames", tmp_path / "run"
    small = ("--model", "kl", "--net", "xs", "--size", SIZE)
    done("train", *clips, *small, "--out", coder)
    assert (coder / "report.html").is_file()
    refused(ornstein("train", *clips, "--latent", coder, "--noise", "warped", "--out", run), "motion of pixels")
    done("train", *clips, "--latent", coder, "--net", "xs", "--noise", "ar1:0.5", "--given-frames", "--out", run)
    model = orn.load(run)
    assert model.shape == (3, FRAMES, SIZE, SIZE) and model.data.shape == (4, FRAMES, SIZE // 2, SIZE // 2)
    few = ("-n", 1, "--steps", 2)
    done("sample", run, *few, "--out", tmp_path / "new")
    assert [f.shape for f in frames_of(tmp_path / "new" / "00000.mp4")] == [(64, 64, 3)] * FRAMES
    done("sample", run, *few, "--frames", FRAMES + 3, "--out", tmp_path / "long")
    assert len(frames_of(tmp_path / "long" / "00000.mp4")) == FRAMES + 3
    done("sample", run, *few, "--given", films, "--first", 2, "--out", tmp_path / "given")
    given = orn.data.open_clips(films, FRAMES, SIZE).batch([0])[0]
    shown = np.stack(frames_of(tmp_path / "given" / "00000.mp4"))[:2, ::4, ::4] / 127.5 - 1
    assert np.abs(shown - given[0, :, :2].permute(1, 2, 3, 0).numpy()).mean() < 0.1  # but for the codec, as they were
    done("train", "--resume", "--steps", 3, "--out", run)


def test_clips_are_evaluated(tmp_path: Path) -> None:
    run, balls = tmp_path / "run", ("--data", "bouncing-balls", "--frames", 4, "--size", 16)
    done("train", *balls, "--net", "xs", "--noise", "warped:0.1", "--batch", 2, "--steps", 2, "--out", run)
    sizes = ("-n", 8, "--steps", "2,3", "--seeds", 2)
    output = done("evaluate", run, *sizes)
    assert "Quality of clips" in output and "4 sets" in output
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    rows = record["quality"]
    assert [(row["steps"], len(row["motion"]["values"])) for row in rows] == [(2, 2), (3, 2)]
    # real clips move as they do, but for what the estimate of their flow is off by
    assert record["training_clips"]["motion"]["mean"] < 0.5 * min(row["motion"]["mean"] for row in rows)
    again = done(*record["command"].split()[1:], "--out", tmp_path / "again")
    assert "bouncing-balls that the run held out" in again
    copied = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert copied["quality"] == rows
    done("evaluate", run, *sizes, "--likelihood", "vlb", "--data", "moving-digits", "--out", tmp_path / "other")
    other = json.loads((tmp_path / "other" / "evaluation.json").read_text())
    assert other["likelihood"] == [] and "another covariance for each clip" in other["left_out"][0]
    assert other["training_clips"] is None and "not known" in other["about"]
    refused(ornstein("evaluate", run, "--features", "pixels"), "--features", "differences over frames")
    refused(ornstein("evaluate", run, "--likelihood", "few"), "--likelihood few")
    refused(ornstein("evaluate", run, "--held-out", 0.5), "held out 0.1")


@pytest.mark.slow
def test_bits_of_clips_are_those_of_the_library(tmp_path: Path) -> None:
    run = tmp_path / "run"
    clips = ("--data", "moving-digits", "--frames", 2, "--size", 16, "--noise", "ar1:0.5")
    done("train", *clips, "--net", "xs", "--batch", 2, "--steps", 2, "--no-report", "--no-conditional", "--out", run)
    done("evaluate", run, "-n", 8, "--steps", 2, "--likelihood", "vlb", "--images", 2)
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())["likelihood"][0]
    real = orn.data.open_clips("moving-digits", 2, 16).split(0.1, 0)[1].batch([0, 1])[0]
    bound = orn.likelihood.vlb(orn.load(run), real, 1000, decoder="discrete").total
    expected = orn.likelihood.bits_per_dim(bound, real.shape, None).mean()
    assert found["count"] == 2 and found["mean"] == pytest.approx(float(expected), rel=1e-4)
