"""Covariances as JSON and as the short texts of the command line."""

import json
from pathlib import Path

import pytest
import torch

from ornstein.noise import (
    AR1,
    OU,
    Covariance,
    Kronecker,
    LowRank,
    Matrix,
    Mixed,
    SpectralAR1,
    Toeplitz,
    from_config,
    parse,
    to_config,
)

EACH = [
    OU([0.0, 0.5, 2.0], 0.3),
    Mixed(3, 0.25),
    Toeplitz([1.0, 0.5, 1 / 3]),
    LowRank([1.0, 0.5], [[0.1], [1 / 7]]),
    LowRank([1.0, 0.5], torch.zeros(2, 0)),
    Kronecker(AR1(3, 0.9)),
    Kronecker(AR1(3, 0.9), (Toeplitz([1.0, 0.1]), OU([0.0, 1.0], 1.0))),
    Kronecker(space=LowRank([1.0, 0.5], [[0.1], [0.2]]), white=0.25),
    SpectralAR1(3, [0.9, 0.1], size=(2, 2), white=0.5),
    SpectralAR1(3, torch.tensor([[0.9, 0.1], [0.2, 0.3]])),
]


@pytest.mark.parametrize("c", EACH, ids=str)
def test_round_trip_through_json(c: Covariance):
    c.dense()
    shape = {2: (1, 2), 3: (1, 3)}.get(len(c.dense()), (1, 1, 3, 2, 2))
    if not isinstance(c, Kronecker) or c.time is not None:
        c.color(torch.zeros(shape if not isinstance(c, Kronecker) else (1, 1, 3, 2, 2)))  # nothing cached in the file
    again = from_config(json.loads(json.dumps(to_config(c))))
    assert type(again) is type(c)
    assert again == c
    assert torch.equal(again.dense(), c.dense())


def test_equality_is_by_value():
    assert Toeplitz([1.0, 0.5]) == Toeplitz(torch.tensor([1.0, 0.5]))
    assert hash(Toeplitz([1.0, 0.5])) == hash(Toeplitz(torch.tensor([1.0, 0.5])))
    assert Toeplitz([1.0, 0.5]) != Toeplitz([1.0, 0.4])
    assert Toeplitz([1.0, 0.5]) != Matrix(Toeplitz([1.0, 0.5]).dense())
    assert Kronecker(Toeplitz([1.0, 0.5])) == Kronecker(Toeplitz([1.0, 0.5]))
    assert Kronecker(Toeplitz([1.0, 0.5])) != Kronecker(Toeplitz([1.0, 0.4]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "Kronecker", "time": {"type": "Pink"}}, "unknown noise 'Pink'"),
        ({"type": "Kronecker", "space": [{"type": "AR1", "length": 2, "rho": 0.1}]}, "a pair"),
        ({"type": "Kronecker", "time": 3}, "over one axis"),
        ({"type": "Toeplitz", "first_row": [1.0, 2.0]}, "smallest eigenvalue"),
        ({"type": "Toeplitz", "first_row": "row"}, "wrong arguments for the noise Toeplitz"),
        ({"type": "Mixed", "length": 2}, "wrong arguments for the noise Mixed"),
    ],
)
def test_bad_configs(config: dict, message: str):
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_parse_a_file(tmp_path: Path):
    for c in (Toeplitz([1.0, 0.5, 0.2]), SpectralAR1(3, [0.5], size=(2, 2)), Kronecker(AR1(3, 0.1))):
        path = tmp_path / "noise.json"
        path.write_text(json.dumps(to_config(c)))
        assert parse(str(path), 3) == c
        with pytest.raises(ValueError, match=r"made for 3 frames, not 4: fit it again with --frames 4"):
            parse(str(path), 4)
    space = Kronecker(space=(AR1(2, 0.1), AR1(2, 0.1)))
    path.write_text(json.dumps(to_config(space)))
    assert parse(str(path), 7) == space
    assert parse("mixed:0.5", 3) == Mixed(3, 0.5)


def test_parse_errors(tmp_path: Path):
    broken, other = tmp_path / "broken.json", tmp_path / "list.json"
    broken.write_text("{")
    other.write_text("[1]")
    for text, message in (
        (str(tmp_path / "none.json"), "cannot be read"),
        (str(broken), "no JSON"),
        (str(other), "holds no noise"),
        ("mixed:2", "noise 'mixed:2': Mixed over 5 frames needs a correlation"),
        ("mixed", "noise 'mixed'"),
        ("toeplitz", "unknown noise 'toeplitz'; write white or ar1:0.9, mixed:0.5, or a file"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            parse(text, 5)
        assert "\n" not in str(error.value)
