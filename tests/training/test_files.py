import errno
import os
import resource

import pytest
import torch
from safetensors import safe_open

from ornstein.errors import RunError, UserError
from ornstein.store import (
    CHECKSUM,
    atomic_save_tensors,
    atomic_write,
    read_json,
    remove_partial,
)


def test_write_replaces(tmp_path):
    path = tmp_path / "a.json"
    atomic_write(path, b'{"x": 1}')
    atomic_write(path, b'{"x": 2}')
    assert read_json(path) == {"x": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_keep_values_and_metadata(tmp_path):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    atomic_save_tensors(tmp_path / "t.safetensors", {"x": x, "n": torch.tensor(3)}, {"k": "v"})
    with safe_open(tmp_path / "t.safetensors", "pt") as f:
        assert f.metadata().keys() == {"k", CHECKSUM} and f.metadata()["k"] == "v"
        assert torch.equal(f.get_tensor("x"), x)
        assert f.get_tensor("n").item() == 3


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "the disk is full; free some space"), (errno.EIO, "cannot write")]
)
@pytest.mark.parametrize("call", ["fsync", "write"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, number, words, call):
    path = tmp_path / "a"
    atomic_write(path, b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(RunError, match=words) as error:
        atomic_write(path, b"new")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_size_limit_of_the_system(tmp_path):
    path = tmp_path / "a"
    atomic_write(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RunError, match="a file-size limit"):
            atomic_write(path, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"


def test_remove_partial_touches_nothing_else(tmp_path):
    for name in (".a.safetensors.partial", "a.safetensors", "notes.partial.txt"):
        (tmp_path / name).write_text("x")
    remove_partial(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "notes.partial.txt"}


def test_read_json_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_json(tmp_path / "none.json")
    for text, words in [("{", "cannot read"), ("[1]", "does not hold a JSON object")]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_json(tmp_path / "bad.json")
