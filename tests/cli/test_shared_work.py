"""Work that the processes of a launch share out: one result, that of one process to the last bit."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ornstein as orn
from running import ENVIRONMENT, done, torchrun

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow


def both(tmp_path: Path, *arguments: object, code: int = 0) -> tuple[Path, Path]:
    """The command by one process into the folder "one", and by two into "two"."""
    two = torchrun(*arguments, "--out", tmp_path / "two")
    assert two.returncode == code, two.stdout + two.stderr
    done(*arguments, "--out", tmp_path / "one")
    return tmp_path / "one", tmp_path / "two"


def same_files(one: Path, two: Path, *names: str) -> None:
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    done("train", "--data", "digits", "--net", "xs", "--steps", 4, "--batch", 8, "--no-report", "--out", out)
    return out


def test_trajectories_of_a_teacher(run: Path, tmp_path: Path) -> None:
    options = ("--to", 2, "--trajectories", 300, "--steps", 2, "--batch", 8, "--no-report")
    one, two = both(tmp_path, "distil", run, *options)
    same_files(one, two, "trajectories/trajectories.npy", "trajectories/about.json")
    about = json.loads((two / "trajectories" / "about.json").read_text())
    array = np.load(two / "trajectories" / "trajectories.npy", mmap_mode="r+")
    array[256:] = 0  # killed in the second round
    array.flush()
    (two / "trajectories" / "about.json").write_text(json.dumps(about | {"done": 256}))
    assert torchrun("distil", run, *options, "--out", two, "--resume").returncode == 0
    same_files(one, two, "trajectories/trajectories.npy")


def test_latents(tmp_path: Path) -> None:
    options = ("--steps", 2, "--batch", 8, "--no-report")
    done("train", "--data", "digits", "--model", "vae", *options, "--out", tmp_path / "ae")
    options = ("--net", "xs", *options)
    one, two = both(tmp_path, "train", "--data", "digits", "--latent", tmp_path / "ae", *options)
    same_files(one, two, "latents/latents.npy", "latents/about.json")


def test_likelihoods(run: Path, tmp_path: Path) -> None:
    options = ("-n", 64, "--solvers", "ddim", "--steps", 1, "--seeds", 1, "--features", "pixels")
    options += ("--likelihood", "continuous,ode", "--images", 80)
    one, two = both(tmp_path, "evaluate", run, *options)
    same_files(one, two, "evaluation.json")
    assert (one / "evaluation.json").read_text().count('"count": 80') >= 2


@pytest.fixture
def portrait() -> Image.Image:
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    pytest.importorskip("c2pa", reason="the extra `faces` is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose portrait this test needs, is not installed")
    return Image.fromarray(data.astronaut()[0:260, 90:350])


def test_faces_are_prepared(portrait: Image.Image, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(70):  # two shards
        (portrait if i in (3, 66) else Image.new("RGB", (80, 80), (i, 90, 90))).save(photos / f"{i:03d}.png")
    one, two = both(tmp_path, "faces", "prepare", photos)
    assert sorted(f.name for f in one.iterdir()) == sorted(f.name for f in two.iterdir())
    for file in one.iterdir():
        if file.suffix != ".safetensors":  # the order of its metadata is that of a hash
            same_files(one, two, file.name)
            continue
        first, second = load_file(file), load_file(two / file.name)
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_swaps_of_a_batch(portrait: Image.Image, tmp_path: Path) -> None:
    from ornstein.denoiser import Data
    from ornstein.faces.identity import IdentityNet
    from ornstein.nets import FaceUNet

    torch.manual_seed(0)
    net = FaceUNet(3, 32, 5, 128, width=16, multipliers=(1, 2), depths=(1, 1))
    torch.nn.init.normal_(net.head[2].weight, std=0.1)
    model = tmp_path / "model"
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=Data((3, 32, 32))).save(model)
    IdentityNet(128, width=8).save(model / "identity")
    portrait.save(tmp_path / "face.png")
    rows = [("face.png", "face.png", f"{i}.png") for i in range(3)] + [("face.png", "none.png", "4.png")]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("source", "target", "out"), *rows])
    options = ("--model", model, "--steps", 1, "--guidance", 1, "--i-have-consent", "Eileen Collins, a test")
    told = torchrun("swap", "--batch", tmp_path / "pairs.csv", *options)
    assert told.returncode == 1 and "3 of 4 swaps done, 1 failed" in told.stdout, told.stdout + told.stderr
    assert told.stdout.count("line 5 of") == 1 and "there is no file" in told.stdout
    assert sorted(p.name for p in tmp_path.glob("?.png")) == ["0.png", "1.png", "2.png"]
    log = [json.loads(line) for line in (tmp_path / "ornstein-swaps.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in log) == ["0.png", "1.png", "2.png"]
    alone = torchrun("swap", tmp_path / "face.png", tmp_path / "face.png", "-o", tmp_path / "o.png", *options)
    assert alone.returncode != 0 and "one swap is made by one process" in alone.stderr


SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{}", "SLURM_LOCALID": "{}", "SLURM_STEP_NODELIST": "localhost"}
MPIRUN = {f"OMPI_COMM_WORLD_{name}": value for name, value in (("SIZE", "2"), ("RANK", "{}"), ("LOCAL_RANK", "{}"))}


@pytest.mark.parametrize("launcher", [SRUN, MPIRUN], ids=["srun", "mpirun"])
def test_processes_of_other_launchers_find_each_other(launcher: dict[str, str], run: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "ornstein", "sample", str(run), "-n", "6", "--steps", "1", "--batch", "2"]
    processes = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / "two")],
            env=ENVIRONMENT | {k: v.format(i) for k, v in launcher.items()} | {"MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0][0].count("6 samples in") == 1 and not told[1][0].strip()
    done("sample", run, "-n", 6, "--steps", 1, "--batch", 2, "--out", tmp_path / "one")
    same_files(tmp_path / "one", tmp_path / "two", *(f"{i:05d}.png" for i in range(6)))
    assert os.environ.get("WORLD_SIZE") is None
