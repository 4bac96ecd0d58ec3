"""Batches made ahead, and trainings on sets that are decoded as they are read."""

import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ornstein.data import StreamedSet, batch_indices, open_images, open_streamed
from ornstein.errors import RunError, UserError
from ornstein.training import train
from ornstein.training.loader import Loader
from ornstein.training.state import STATE
from ornstein.training.task import Part


class Numbers:
    """Image i is i; it can be told to fail at one, and counts the batches it made."""

    def __init__(self, n: int = 50, broken: int | None = None) -> None:
        self.n, self.broken, self.made = n, broken, 0

    def __len__(self) -> int:
        return self.n

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.made += 1
        if self.broken in indices.tolist():
            raise RunError(f"image {self.broken} is gone")
        return indices.float()[:, None], indices


PARTS = [Part(2, 2, 8), Part(4, 2, 8)]


def want(step: int) -> list[list[int]]:
    order = batch_indices(50, 8, step, seed=3).tolist()
    return [order[2:4], order[4:6]]


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_step_gets_its_own_batch_whatever_was_asked_for_before(ahead: int) -> None:
    loader = Loader(Numbers(), 8, 3, PARTS, ahead)
    for step in (0, 1, 2, 3, 40, 41, 7, 8, 9, 9):
        got = loader.batches(step)
        assert [labels.tolist() for _, labels in got if labels is not None] == want(step)
        assert [x[:, 0].tolist() for x, _ in got] == want(step)
    assert loader.rows(5).tolist() == [*want(5)[0], *want(5)[1]]
    loader.close()


def test_steps_are_made_ahead_by_one_thread_and_not_without_end() -> None:
    images = Numbers()
    loader = Loader(images, 8, 3, PARTS)
    assert images.made == 0
    loader.batches(0)
    loader.close()
    assert images.made <= 4 * len(PARTS)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_an_error_comes_with_its_own_step() -> None:
    order = torch.stack([batch_indices(50, 8, step, seed=3)[2:6] for step in range(6)])
    broken = int(order[3, 0])
    assert broken not in order[:3]
    loader = Loader(Numbers(broken=broken), 8, 3, PARTS)
    for step in range(3):
        assert len(loader.batches(step)) == 2
    with pytest.raises(RunError, match="is gone"):
        loader.batches(3)
    assert len(loader.batches(4)) == 2
    loader.close()


def stripes(path: Path, shards: int = 3, each: int = 40, damaged: tuple[int, ...] = ()) -> Path:
    path.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(path / f"{shard}.tar", "w") as archive:
            for i in range(each):
                wave = np.sin(np.arange(8) * 1.5 + i + shard) * 127 + 128
                pixels = np.broadcast_to(wave[:, None] if i % 2 else wave[None], (8, 8)).astype(np.uint8)
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "PNG")
                bad = shard * each + i in damaged
                files = {f"{i}.png": b"damaged" if bad else data.getvalue(), f"{i}.cls": b"%d" % (i % 2)}
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return path


def opened(path: Path) -> StreamedSet:
    found = open_streamed(path, 8, 1)
    assert found is not None
    return found


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a / STATE), load_file(b / STATE)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_streamed_run_goes_on_where_it_stopped(toy, tmp_path: Path) -> None:
    path = stripes(tmp_path / "set", damaged=(3, 50, 51))
    config = toy.config(steps=24)  # past the end of an epoch, which is 15 steps
    list(train(toy.denoiser(), opened(path), config, tmp_path / "whole"))
    for state in train(toy.denoiser(), opened(path), config, tmp_path / "cut"):
        if state.step == 14:
            break
    list(train(toy.denoiser(), opened(path), config, tmp_path / "cut", resume=True))
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_streamed_run_does_not_go_on_in_another_order(toy, tmp_path: Path) -> None:
    path = stripes(tmp_path / "set")
    list(train(toy.denoiser(), opened(path), toy.config(steps=2), tmp_path / "run"))
    with pytest.raises(UserError, match="was trained with streamed = True, and None is asked for"):
        train(toy.denoiser(), open_images(path, 8, 1), toy.config(steps=4), tmp_path / "run", resume=True)


def test_a_shard_cut_short_stops_the_run_and_put_back_it_goes_on(toy, tmp_path: Path) -> None:
    path = stripes(tmp_path / "set")
    config = toy.config(steps=24)
    list(train(toy.denoiser(), opened(path), config, tmp_path / "whole"))
    whole = (path / "1.tar").read_bytes()
    states = train(toy.denoiser(), opened(path), config, tmp_path / "cut")
    next(states)
    (path / "1.tar").write_bytes(whole[:2000])
    with pytest.raises(RunError, match=r"1.tar: the archive is cut short; put it back"):
        list(states)
    (path / "1.tar").write_bytes(whole)
    list(train(toy.denoiser(), opened(path), config, tmp_path / "cut", resume=True))
    assert same(tmp_path / "whole", tmp_path / "cut")
