"""--trust-sizes: every command that opens a run names the option when it refuses a size, and takes it."""

import json
from pathlib import Path

import pytest
import torch

from ornstein import Denoiser, Process, SampleSpec, autoencoders, checkpoint
from ornstein.autoencoders.latent import LatentSpace
from ornstein.errors import UserError
from ornstein.nets import UNet
from ornstein.schedules import Cosine
from running import done, ornstein, refused

# Each command on a run without classes and without stored data, and what it says next once the sizes are accepted;
# no word if it then succeeds.
COMMANDS = {
    "sample": (("-n", 1, "--steps", 1), ""),
    "bench": (("--solvers", "ddim", "--steps", 1, "--batch", 1, "--repeats", 1), ""),
    "evaluate": ((), "give --data"),
    "tune": (("--guidance", 2), "without classes"),
    "distil": (("--guidance", 2), "without classes"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    net = UNet(1, 8, width=8, multipliers=(1,), depths=(1,), attention=())
    Denoiser(net, Process(Cosine()), "v", data=SampleSpec((1, 8, 8))).save(tmp_path / "run")
    return tmp_path / "run"


def words(command: str, run: Path) -> list[object]:
    out = ["--out", run.parent / "out"] if command != "bench" and command != "tune" else []
    return [command, run, *COMMANDS[command][0], *out]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_sample_over_the_limit_is_refused_and_the_option_is_named(command: str, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["data"]["shape"] = [1, 2**13, 2**14]
    (run / "config.json").write_text(json.dumps(config))
    refused(ornstein(*words(command, run)), "a sample of (1, 8192, 16384)", "--trust-sizes")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_option_lifts_the_limit(command: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ornstein.sizes.LARGEST_SAMPLE", 63)
    refused(ornstein(*words(command, run)), "a sample of (1, 8, 8)", "--trust-sizes")
    result, later = ornstein(*words(command, run), "--trust-sizes"), COMMANDS[command][1]
    if later:
        refused(result, later)
    else:
        assert result.exit_code == 0, result.output


def test_it_holds_for_autoencoders_and_for_that_of_a_latent_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ae"
    autoencoders.save(autoencoders.KLAutoencoder(3, 8, width=16, depths=(1, 1, 1)), folder)
    space = LatentSpace(
        autoencoders.load(folder), torch.zeros(4), torch.ones(4), folder, autoencoders.fingerprint(folder)
    )
    net = UNet(4, 4, width=8, multipliers=(1,), depths=(1,), attention=())
    Denoiser(net, Process(Cosine()), "v", data=SampleSpec((4, 4, 4)), space=space).save(tmp_path / "latent")
    monkeypatch.setattr("ornstein.sizes.LARGEST_SAMPLE", 100)  # the latents have 64 numbers, the images 192
    with pytest.raises(UserError, match=r"a sample of \(3, 8, 8\).*--trust-sizes"):
        checkpoint.load(tmp_path / "latent")
    assert checkpoint.load(tmp_path / "latent", trust_sizes=True).space is not None
    sample = ("sample", folder, "-n", 1, "--out", tmp_path / "out")
    refused(ornstein(*sample), "--trust-sizes")
    done(*sample, "--trust-sizes")
