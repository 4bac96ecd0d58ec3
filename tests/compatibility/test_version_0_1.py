"""Runs that version 0.1 wrote: they open, and make the same samples as they did then.

`version_0_1/` holds tiny models of each kind and, in expected.safetensors, what version 0.1 made of them.
"""

from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein import autoencoders, checkpoint
from ornstein.store import load_tensors

RUNS = Path(__file__).parent / "version_0_1"
EXPECTED, _ = load_tensors(RUNS / "expected.safetensors")
INPUTS = {name.removeprefix("in."): value for name, value in EXPECTED.items() if name.startswith("in.")}


@pytest.mark.parametrize("name", ["digits", "clips", "latent", "few-steps", "preconditioned"])
def test_samples_of_an_old_run(name):
    d = orn.load(RUNS / name)
    cond = {"label": [1, 2]} if d.data.classes else None
    steps = {} if d.distilled else {"solver": "ddim", "steps": 5, "grid": "logistic"}
    x = orn.sample(d, (2, *d.data.shape), seed=3, cond=cond, **steps)
    torch.testing.assert_close(d.decode(x), EXPECTED[name], rtol=1e-4, atol=1e-4)


def test_a_solver_tuned_for_an_old_run():
    (tuned,) = checkpoint.load_tuned(RUNS / "digits", 4)
    x = orn.sample(orn.load(RUNS / "digits"), (2, 1, 8, 8), tuned, seed=3, cond={"label": [1, 2]})
    torch.testing.assert_close(x, EXPECTED["digits-tuned"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_networks_of_faces():
    x, log_snr, scene, appearance = (INPUTS[k] for k in ("x", "log_snr", "scene", "appearance"))
    face = orn.load(RUNS / "face").net(x, log_snr, scene=scene, identity=INPUTS["face_identity"], appearance=appearance)
    torch.testing.assert_close(face, EXPECTED["face"], rtol=1e-4, atol=1e-4)
    known = {k: INPUTS[k] for k in ("scene", "identity", "appearance", "points")}
    torch.testing.assert_close(
        orn.load(RUNS / "relit").net(x, log_snr, **known), EXPECTED["relit"], rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_an_autoencoder():
    model = autoencoders.load(RUNS / "autoencoder")
    out = model.decode(model.encode(INPUTS["x8"]).mean)
    torch.testing.assert_close(out, EXPECTED["autoencoder"], rtol=1e-4, atol=1e-4)
