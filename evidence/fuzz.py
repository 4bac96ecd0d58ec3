"""Damaged files into every reader: whatever they hold, the answer is the data or one line.

Hypothesis changes, cuts, repeats and inserts bytes of sound files; puts values of other types and sizes at any place of
the JSON files of a run; and puts links, pipes, devices and folders in the place of its files.
Anything but a result, UserError or RunError of one line is a finding, and so is needing more than 4 GB of address space
beyond that of the libraries, or more than 20 seconds. Prints how many files each reader saw; exit code 1 with findings.

    python evidence/fuzz.py                 # 30 minutes
    python evidence/fuzz.py --seconds 180 --seed 1
"""

import argparse
import io
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import ornstein as orn
from ornstein.checkpoint import load_tuned, save_tuned
from ornstein.data import open_clips, open_images, save_mp4
from ornstein.errors import RunError, UserError
from ornstein.few_steps.tuning import trajectories, tune
from ornstein.nets import UNet
from ornstein.runs import describe
from ornstein.settings import read as read_settings
from ornstein.settings import to_json
from ornstein.store import load_tensors, read_json
from ornstein.training.settings import DistilSettings, Settings

OUTSIDE = "what is outside of a run"
ROUND = 20  # examples between two looks at the clock
EDITS = ("set", "insert", "delete", "cut", "repeat")
edits = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(EDITS), st.binary(min_size=1, max_size=8)), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
) | st.sampled_from([-1, 0, 0.5, 1e300, float("nan"), 2**40, 10**30, 50_000, "../../x", "x" * 100_000])
SPECIAL = ("link", "loop", "dangling", "pipe", "device", "folder", "absent", "empty")


def edited(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    out = bytearray(data)
    for place, how, piece in changes:
        at = int(place * len(out))
        if how == "set":
            out[at : at + len(piece)] = piece
        elif how == "insert":
            out[at:at] = piece
        elif how == "delete":
            del out[at : at + 16 * len(piece)]
        elif how == "cut":
            del out[at:]
        else:
            out[at:at] = out[at : at + 64 * len(piece)]
    return bytes(out)


def pictures() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    out = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        out[f"a.{kind.lower()}"] = buffer.getvalue()
    return out


def archives() -> dict[str, bytes]:
    files = pictures()
    zipped, tarred, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"k/{name}", data)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        samples = {f"{i}{Path(name).suffix}": data for i, (name, data) in enumerate(files.items())}
        for name, data in {**samples, **{f"{i}.cls": b"3" for i in range(len(files))}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    np.savez_compressed(packed, x=np.zeros((5, 4, 4, 3), np.uint8), y=np.arange(5))
    return {"a.zip": zipped.getvalue(), "a.tar": tarred.getvalue(), "a.npz": packed.getvalue()}


def arrays() -> dict[str, bytes]:
    out = {}
    for name, x in {"u.npy": np.zeros((5, 4, 4, 3), np.uint8), "f.npy": np.zeros((5, 4, 4), np.float32)}.items():
        buffer = io.BytesIO()
        np.save(buffer, x)
        out[name] = buffer.getvalue()
    return out


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ([path] if path else []) + [place for key, inner in items for place in paths(inner, (*path, key))]


def with_value(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with another value at the path."""
    copy = inner = json.loads(json.dumps(tree))
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def put(kind: str, file: Path, outside: Path) -> None:
    """Something that is not a regular file, or one without content, in the place of the file."""
    file.unlink()
    if kind in ("link", "loop", "dangling", "device"):
        targets = {"link": outside, "loop": file, "dangling": outside / "nothing", "device": Path("/dev/zero")}
        file.symlink_to(targets[kind])
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "empty":
        file.touch()


def json_files(run: Path) -> dict[str, Any]:
    """The JSON files of a run by name. Settings and a tuned solver are added to it first."""
    (run / "train.json").write_text(json.dumps(to_json(Settings(data="digits"))))
    (run / "distil.json").write_text(json.dumps(to_json(DistilSettings())))
    save_tuned(run, [tune(trajectories(orn.load(run), 4), 2, iterations=0)])
    return {file.name: json.loads(file.read_text()) for file in run.glob("*.json")}


def fresh(run: Path, place: Path) -> Path:
    """A copy of the run, in place of an earlier one."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(run, place))


def read_run(run: Path) -> None:
    """Each reader of a run, whatever the one before it says."""
    readers: tuple[Callable[[Path], Any], ...] = (
        orn.load,
        load_tuned,
        describe,
        lambda run: read_settings(Settings, read_json(run / "train.json"), "train.json"),
        lambda run: read_settings(DistilSettings, read_json(run / "distil.json"), "distil.json"),
    )
    for read in readers:
        allowed(read, run)


def late(*_: Any) -> None:
    raise AssertionError("it hangs")


def model(folder: Path) -> Path:
    net = UNet(channels=1, size=8, classes=0, width=16, multipliers=(1,), depths=(1,), attention=())
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 8, 8))).save(folder)
    return folder


def read_images(path: Path) -> None:
    open_images(path, size=8)


def read_file(path: Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    path.rename(folder / path.name)
    open_images(folder, size=8)


def allowed(read: Callable[[Path], Any], path: Path) -> None:
    """Read, and raise AssertionError where the reader does not keep to what is written above."""
    began = time.monotonic()
    signal.alarm(60)
    try:
        read(path)
    except (UserError, RunError) as error:
        assert "\n" not in str(error), f"more than a line: {error}"
    finally:
        signal.alarm(0)
    assert time.monotonic() - began < 20, "more than 20 seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, late)
    findings = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sound = model(root / "model")
        save_mp4(torch.zeros(3, 6, 16, 16), root / "sound.mp4")
        weights = (sound / "model.safetensors").read_bytes()
        trees = json_files(sound)
        read_run(sound)
        files: dict[str, tuple[dict[str, bytes], Callable[[Path], Any]]] = {
            "images": (pictures(), read_file),
            "archives": (archives(), read_images),
            "arrays": (arrays(), read_images),
            "safetensors": ({"a.safetensors": weights}, load_tensors),
            "video": ({"a.mp4": (root / "sound.mp4").read_bytes()}, lambda path: open_clips(path, 4, 8)),
        }
        for kind, (samples, read) in files.items():  # sound ones are read, and all that is imported late is in memory
            for file, data in samples.items():
                (root / file).write_bytes(data)
                read(root / file)
            del kind
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, resource.RLIM_INFINITY))
        seen = 0

        def run(kind: str, strategy: Any, one: Callable[[Any], None]) -> None:
            nonlocal seen, findings
            end, seen, turn = time.monotonic() + given_.seconds / (len(files) + 2), 0, given_.seed
            while time.monotonic() < end:

                @seed(turn)
                @settings(
                    max_examples=ROUND,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                )
                @given(strategy)
                def test(example: Any) -> None:
                    nonlocal seen
                    seen += 1
                    one(example)

                try:
                    test()
                except Exception:
                    findings += 1
                    traceback.print_exc(limit=-3)
                turn += 1
            print(f"{kind}: {seen} read, {findings} findings so far", flush=True)

        for kind, (samples, read) in files.items():

            def one(example: Any, samples: dict[str, bytes] = samples, read: Callable[[Path], Any] = read) -> None:
                file, changes = example
                (root / file).write_bytes(edited(samples[file], changes))
                allowed(read, root / file)

            run(kind, st.tuples(st.sampled_from(sorted(samples)), edits), one)

        def configured(example: Any) -> None:
            file, place, value = example
            every = paths(trees[file])
            text = json.dumps(with_value(trees[file], every[int(place * (len(every) - 1))], value))
            run_copy = fresh(sound, root / "edited")
            (run_copy / file).write_text(text)
            read_run(run_copy)

        run("configurations", st.tuples(st.sampled_from(sorted(trees)), st.floats(0, 1), values), configured)

        outside = root / "outside"
        outside.write_text(OUTSIDE)

        def special(example: Any) -> None:
            run_copy = fresh(sound, root / "edited")
            for file, kind in example.items():
                put(kind, run_copy / file, outside)
            read_run(run_copy)
            assert outside.read_text() == OUTSIDE, "a file outside of the run was written"

        names = sorted((*trees, "model.safetensors"))
        run("special files", st.dictionaries(st.sampled_from(names), st.sampled_from(SPECIAL), min_size=1), special)
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
