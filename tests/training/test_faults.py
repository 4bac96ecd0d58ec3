"""What a week brings: damaged files, full memory, two trainers, wrong clocks, data that vanish."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.errors import RunError, UserError
from ornstein.store import load_tensors
from ornstein.training import lock, train
from ornstein.training.state import PREVIOUS, STATE


def run(toy, out, resume=False, images=None, denoiser=None, **settings):
    return list(train(denoiser or toy.denoiser(), images or toy.Images(), toy.config(**settings), out, resume))


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a / STATE), load_file(b / STATE)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


# the length of the header, the header, the middle and the end of the numbers
@pytest.mark.parametrize("place", [0.0, 0.00005, 0.5, 0.9, 1.0])
def test_a_flipped_bit_is_found_and_the_state_before_is_used(toy, tmp_path, place):
    run(toy, tmp_path / "whole")
    run(toy, tmp_path / "run", steps=8)
    flip(tmp_path / "run" / STATE, place)
    with pytest.warns(UserWarning, match=r"trainer.safetensors.*going on from the one before, of step 4"):
        states = run(toy, tmp_path / "run", resume=True)
    assert [s.step for s in states] == list(range(5, 13))
    assert same(tmp_path / "whole", tmp_path / "run")
    flip(tmp_path / "run" / STATE, place)
    flip(tmp_path / "run" / PREVIOUS, place)
    with pytest.raises(UserError, match=r"cannot read the trainer's state .*trainer.safetensors"):
        run(toy, tmp_path / "run", resume=True, steps=14)


def test_a_state_that_is_gone_is_replaced_by_the_one_before(toy, tmp_path):
    run(toy, tmp_path, steps=8)
    (tmp_path / STATE).unlink()
    assert [s.step for s in run(toy, tmp_path, resume=True, steps=9)] == [5, 6, 7, 8, 9]


def test_a_flipped_bit_of_the_model_is_found(toy, tmp_path):
    run(toy, tmp_path, steps=1)
    file = tmp_path / "model.safetensors"
    assert orn.load(tmp_path)
    flip(file, 0.8)
    with pytest.raises(UserError, match=r"model.safetensors is damaged: .* checksum"):
        orn.load(tmp_path)
    # models of other programs have no checksum
    flip(file, 0.8)
    tensors, metadata = load_tensors(file)
    import safetensors.torch

    file.write_bytes(safetensors.torch.save(tensors))
    assert metadata == {} and orn.load(tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from ornstein.training import lock
lock.hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_trainer_is_refused_until_the_first_is_gone(toy, tmp_path):
    run(toy, tmp_path / "run", steps=4)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        with pytest.raises(UserError, match=rf"is being trained by process {holder.pid} on "):
            run(toy, tmp_path / "run", resume=True, steps=6)
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    finally:
        holder.kill()
        holder.wait()
    # killed: what it left in the file means nothing
    assert json.loads((tmp_path / "run" / lock.LOCK).read_text())["pid"] == holder.pid
    assert len(run(toy, tmp_path / "run", resume=True, steps=6)) == 2
    assert (tmp_path / "run" / lock.LOCK).read_text() == ""


def test_without_locks_of_the_system_the_process_in_the_file_decides(tmp_path, monkeypatch):
    import fcntl

    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    file = tmp_path / lock.LOCK
    for pid, where, refused in ((os.getppid(), host, True), (gone.pid, host, False), (1, "elsewhere", True)):
        file.write_text(json.dumps({"pid": pid, "host": where}))
        if refused:
            with pytest.raises(UserError, match=f"process {pid} on {where}"):
                lock.hold(tmp_path)
        else:
            assert lock.hold(tmp_path)
            lock.release(tmp_path)
    with pytest.raises(UserError, match=r"if it is long gone, delete .*\.lock"):
        lock.hold(tmp_path)


def test_the_same_process_may_begin_again(toy, tmp_path):
    states = train(toy.denoiser(), toy.Images(), toy.config(), tmp_path)
    for state in states:
        if state.step == 5:
            break  # and the iterator lives on, as in a notebook
    assert [s.step for s in run(toy, tmp_path, resume=True, steps=6)] == [5, 6]


def test_out_of_memory_says_what_to_halve(toy, tmp_path):
    run(toy, tmp_path, steps=4)
    with pytest.raises(RunError) as error:
        run(toy, tmp_path, images=_Exhausting(), resume=True, accumulate=2)
    text = str(error.value)
    assert "\n" not in text
    for words in ("step 5: out of memory with 4 images at once", "the last checkpoint is kept", "--accumulate 4",
                  "--batch 4"):  # fmt: skip
        assert words in text, text


class _Exhausting:
    """Images for each of which a petabyte is asked of the allocator."""

    labels = None

    def __len__(self) -> int:
        return 96

    def batch(self, indices):
        torch.empty(2**50)


def test_data_that_are_not_numbers_are_named(toy, tmp_path):
    images = toy.Images()
    images.images = images.images.clone()
    images.images[[17, 40]] = float("nan")
    images.names = [f"dogs/{i}.png" for i in range(len(images))]
    with pytest.raises(RunError, match=r"values that are not finite: image dogs/(17|40).png( and 1 more)?;"):
        run(toy, tmp_path, images=images, steps=24)


def test_a_clock_that_is_set_back_changes_nothing(toy, tmp_path, monkeypatch):
    clock = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    states = run(toy, tmp_path, steps=None, minutes=0.02)
    assert 1.2 <= states[-1].elapsed < 30
    elapsed = [s.elapsed for s in states]
    assert elapsed == sorted(elapsed)


def test_a_folder_that_cannot_be_written_is_one_line(toy, tmp_path, monkeypatch):
    import errno
    import os

    real = os.open

    def readonly(path, flags, *arguments, **settings):
        if str(tmp_path) in str(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *arguments, **settings)

    monkeypatch.setattr(os, "open", readonly)
    with pytest.raises(RunError, match=r"cannot write .*run: Read-only file system"):
        run(toy, tmp_path / "run")


def test_latents_cut_short_or_removed_during_training(toy, tmp_path):
    from ornstein.data.rows import RowFile

    file = tmp_path / "rows.npy"
    np.save(file, np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype(np.float32))

    class Rows(toy.Images):
        def __init__(self) -> None:
            super().__init__()
            self.rows = RowFile(file)

        def batch(self, indices):
            return torch.from_numpy(self.rows.read(indices.numpy())), self.labels[indices]

    for what in ("remove", "cut"):
        taken = train(toy.denoiser(), Rows(), toy.config(), tmp_path / what)
        if what == "remove":
            moved = file.rename(tmp_path / "away.npy")
            assert len(list(taken)) == 12
            moved.rename(file)
        else:
            os.truncate(file, 2000)
            with pytest.raises(RunError, match=r"rows.npy was cut short while it was in use: put it back"):
                list(taken)
    with pytest.raises(UserError, match=r"rows.npy is cut short: 2,000 bytes of 24,704"):
        RowFile(file)
