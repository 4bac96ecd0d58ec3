"""The peers are run as they should be: with many evaluations each comes to the exact solution, whatever the noise."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein.noise import AR1, Identity
from ornstein.oracles import GaussianMixture

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from peers import Peer, azula_peers, diffusers_peers

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

DATA = GaussianMixture([1.0], [[0.3, -0.5, 0.1]], [[[0.25, 0.1, 0.0], [0.1, 0.5, 0.0], [0.0, 0.0, 1.0]]])
SCHEDULE = orn.schedules.Discrete.linear(1000)
# What one of each kind is at least as near as with 40 evaluations, on its plainest grid.
NEAR = {
    "DDIM trailing": 0.1,
    "PNDM trailing": 0.03,
    "IPNDM exponential": 0.01,
    "EulerDiscrete exponential": 0.1,
    "HeunDiscrete Karras": 0.1,
    "KDPM2Discrete Karras": 0.1,
    "LMSDiscrete Karras": 0.05,
    "EDMEuler karras from 0.002": 0.2,
    "EDMDPMSolverMultistep 2 midpoint karras from 0.002": 0.02,
    "DPMSolverMultistep 2 midpoint exponential": 0.01,
    "DPMSolverMultistep 2 midpoint flow": 0.1,
    "DPMSolverSinglestep 2 midpoint exponential": 0.05,
    "UniPCMultistep 2 bh2 exponential": 0.01,
    "DEISMultistep 2 exponential": 0.02,
    "SASolver 2 2 exponential": 0.05,
}


def error(peer: Peer, noise: orn.noise.Covariance, evaluations: int) -> float:
    p = orn.Process(SCHEDULE, noise)
    z = torch.randn(32, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = p.prior((32, 3), dtype=torch.float64).sample(z)
    return float((peer(DATA.denoiser(p), x, evaluations) - DATA.ode_map(x, p, 1.0, 0.0)).square().mean().sqrt())


@pytest.fixture(scope="module")
def peers() -> dict[str, Peer]:
    return {p.name: p for p in diffusers_peers(SCHEDULE)}


@pytest.mark.parametrize("noise", [Identity(), AR1(3, 0.7)], ids=lambda c: type(c).__name__)
def test_with_many_evaluations_each_kind_comes_to_the_solution(peers: dict[str, Peer], noise: orn.noise.Covariance):
    found = {name: error(peers[name], noise, 40) for name in NEAR}
    assert not {name: value for name, value in found.items() if value >= NEAR[name]}


@pytest.mark.parametrize("noise", [Identity(), AR1(3, 0.7)], ids=lambda c: type(c).__name__)
def test_the_midpoint_flow_of_diffusers_is_of_first_order(peers: dict[str, Peer], noise: orn.noise.Covariance):
    """Not of the second that its name says: twice the evaluations halve the error."""
    errors = [error(peers["DPMSolverMultistep 2 midpoint flow"], noise, n) for n in (20, 40, 80)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.1)


def test_each_is_there_once_and_keeps_to_its_evaluations(peers: dict[str, Peer]):
    assert len(peers) == len(list(diffusers_peers(SCHEDULE))) > 150
    for name in NEAR:
        for evaluations in (5, 8):  # an error if it asks more often
            assert error(peers[name], Identity(), evaluations) < 10
    with pytest.raises(RuntimeError, match="greedy asked 2 times, not 1"):
        Peer("", "greedy", lambda d, x, n: d(d(x, 1.0).x0, 0.5).x0)(
            DATA.denoiser(orn.Process(SCHEDULE)), torch.zeros(1, 3), 1
        )


def test_azula_where_it_is_installed():
    found = {p.name: p for p in azula_peers()}
    if not found:
        pytest.skip("azula is not installed")
    for name, bound in {"DDIM cosine": 0.1, "Heun rectified": 0.1, "vAB 3 rectified": 0.01, "zEAB 2 VE": 0.05}.items():
        assert error(found[name], AR1(3, 0.7), 40) < bound, name
