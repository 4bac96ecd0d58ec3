"""The parts of `ornstein.faces`, under their earlier names too, and the names of the settings beside what they name."""

import importlib
from typing import get_args

import pytest

import ornstein.faces
from ornstein.faces.commands import TrainCommand
from ornstein.faces.nets.face import PRESETS
from ornstein.faces.settings import SwapSettings
from ornstein.faces.swap.blend import METHODS
from ornstein.settings import type_hints


@pytest.mark.parametrize(("earlier", "now"), ornstein.faces._MOVED.items())
def test_an_earlier_import_path_is_the_same_module(earlier: str, now: str) -> None:
    module = importlib.import_module(f"ornstein.faces.{now}")
    assert importlib.import_module(f"ornstein.faces.{earlier}") is module
    assert module.__spec__ is not None and module.__spec__.name == module.__name__ == f"ornstein.faces.{now}"


def test_the_face_world_and_the_networks_have_their_earlier_names() -> None:
    from ornstein.data.faces import FaceWorld
    from ornstein.faces.nets import FaceUNet, RelitUNet

    nets = importlib.import_module("ornstein.nets")
    assert importlib.import_module("ornstein.faces.world").FaceWorld is FaceWorld
    assert nets.FaceUNet is FaceUNet and nets.RelitUNet is RelitUNet
    with pytest.raises(AttributeError, match="no attribute 'OtherUNet'"):
        _ = nets.OtherUNet


def test_the_settings_name_what_there_is() -> None:
    assert get_args(type_hints(TrainCommand)["net"]) == tuple(PRESETS)
    assert get_args(type_hints(SwapSettings)["blend"]) == tuple(METHODS)
