"""The one mechanism by which a network records its constructor's arguments."""

import copy
import json
from typing import Any

import pytest
import torch

from ornstein.autoencoders import AUTOENCODERS
from ornstein.nets import UNet, VideoUNet
from ornstein.nets.recorded import Recorded

KINDS = list(AUTOENCODERS)
NETWORKS = [
    lambda: UNet(1, 8, 3, width=16, multipliers=[1, 1], depths=(1, 1), attention=(), dropout=0.25),
    lambda: UNet.preset("xs", channels=1, size=8, learned_variance=True),
    lambda: VideoUNet(1, 8, frames=3, width=16, multipliers=(1, 1), depths=(1, 1), attention=(4,)),
    lambda: VideoUNet.preset("xs", channels=1, size=8, frames=2, conditioning=True, classes=2),
    *(lambda kind=kind: AUTOENCODERS[kind](1, 8, width=16) for kind in KINDS),
    *(
        lambda kind=kind: AUTOENCODERS[kind].preset("xs", channels=1, size=16, latent_channels=3)
        for kind in AUTOENCODERS
    ),
]


@pytest.mark.parametrize("make", NETWORKS)
def test_the_config_builds_the_network_again(make: Any):
    net = make()
    config = json.loads(json.dumps(net.config))
    assert config == net.config, "not JSON types"
    again = type(net)(**config)
    assert again.config == config
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in net.state_dict().items()}


def test_defaults_are_recorded_so_that_a_later_default_changes_no_stored_network():
    assert UNet(1, 8).config == {
        "channels": 1,
        "size": 8,
        "classes": 0,
        "patch": 1,
        "width": 64,
        "multipliers": [1, 2, 2],
        "depths": [1, 2, 2],
        "attention": [8],
        "dropout": 0.0,
        "learned_variance": False,
        "text_width": 0,
    }
    config = AUTOENCODERS["kl"](1, 8).config
    assert config["factor"] == 2 and config["latent_channels"] == 4 and config["depths"] == [1, 1, 2]
    assert VideoUNet(1, 8, 4, width=16).config["temporal_attention"] == [8]


def test_a_subclass_records_its_own_arguments():
    class Small(UNet):
        def __init__(self, size: int, *, thin: bool = True) -> None:
            super().__init__(1, size, width=16 if thin else 32, multipliers=(1,), depths=(1,))

    class Alias(Small):
        pass

    for cls in (Small, Alias):
        net = cls(8)
        assert net.config == {"size": 8, "thin": True}
        assert copy.deepcopy(net).config == net.config
        assert torch.equal(net(torch.ones(1, 1, 8, 8), torch.zeros(1)), torch.zeros(1, 1, 8, 8))


def test_wrong_arguments_are_python_s_own_error():
    class Plain(Recorded):
        def __init__(self, width: int) -> None:
            super().__init__()

    with pytest.raises(TypeError, match="widht"):
        Plain(widht=3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="patches"):
        VideoUNet(1, 8, 4, patches=2)
