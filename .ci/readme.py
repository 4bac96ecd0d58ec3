#!/usr/bin/env python
"""Walk the README: run every block, in order, in a temporary folder.

    python .ci/readme.py [README.md]

The blocks run as they are written, with these substitutions:

- `photos.zip` and `clips` are made first: 100 pictures of two classes of coloured discs, 12 clips of moving discs; and
  `models/sd`, a tiny Stable Diffusion pipeline with random weights, and `prompts.txt`.
- Sizes and durations shrink, as SMALLER lists them. A text that the README no longer has is an error.
- Trainings end with a short choice of a solver.
- `pip install` is not run, for it would change the environment that runs this; its extras must exist in
  pyproject.toml. `.ci/wheel` installs into an empty environment.
"""

import os
import re
import shlex
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

import torch

import ornstein as orn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

SMALLER = [
    ("ornstein demo  ", "ornstein demo --quick  "),
    ("plan --data photos.zip --size 32 --minutes 30", "plan --data photos.zip --size 8 --minutes 1 --net xs"),
    ("--size 32 --minutes 30", "--size 8 --steps 6 --batch 8 --net xs --sample-every 0"),
    ("-n 64 --steps 20", "-n 4 --steps 4"),
    ("evaluate runs/photos", "evaluate runs/photos -n 8 --steps 2 --seeds 1 --images 1"),
    ("--resume --minutes 60", "--resume --steps 8"),
    ("tune runs/photos --steps 8", "tune runs/photos --steps 3 --trajectories 2 --iterations 1"),
    ("--size 64 --model kl", "--size 8 --model kl --steps 2 --batch 8 --net xs"),
    ("--latent runs/ae --out", "--latent runs/ae --steps 2 --batch 8 --net xs --sample-every 0 --out"),
    ("runs/latent -n 16", "runs/latent -n 2 --steps 2"),
    ("ornstein faces demo  ", "ornstein faces demo --minutes 0.3  "),
    ("fit-noise clips --frames 16 --size 32", "fit-noise clips --frames 4 --size 16"),
    ("--frames 16 --size 32 --noise", "--frames 4 --size 16 --steps 2 --batch 2 --net xs --sample-every 0 --noise"),
    ("runs/clips -n 8", "runs/clips -n 1 --steps 2"),
    ("--guidance 7.5 -n 4", "--guidance 7.5 -n 1 --steps 2"),
    ("--guidance 7.5 --steps 5,8", "--guidance 7.5 --steps 2 --trajectories 2 --iterations 1"),
    ("range(500)", "range(5)"),
]
MADE = [
    "runs/demo/report.html",
    "runs/demo/samples.png",
    "runs/demo/samples/grid.png",
    "runs/photos/samples/grid.png",
    "runs/photos/evaluation/report.html",
    "runs/latent/samples/grid.png",
    "runs/clips/samples/sheet.png",
    "noise.json",
]


def disc(size: int, x: float, y: float, channel: int) -> torch.Tensor:
    """A disc in one channel on a ramp, (3, size, size) in [-1, 1]."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (row - y) ** 2 + (column - x) ** 2 < (size / 5) ** 2
    return torch.stack(
        [torch.where(inside, 0.9 if c == channel else 0.1, (row + column) / (2 * size) - 1) for c in range(3)]
    )


def material(folder: Path) -> None:
    """Write photos.zip (two classes), clips/ (mp4 files), models/sd and prompts.txt."""
    from interop import tiny

    tiny.build("sd1", folder / "models" / "sd")
    (folder / "prompts.txt").write_text("a red fox\ntwo owls\n")
    draw = torch.Generator().manual_seed(0)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for k in range(100):
            x, y = (16 * torch.rand(2, generator=draw)).tolist()
            orn.data.save_grid(disc(20, x, y, k % 2)[None], folder / "picture.png")
            archive.write(folder / "picture.png", f"photos/{('cats', 'dogs')[k % 2]}/{k:04}.png")
    (folder / "clips").mkdir()
    for k in range(12):
        x, y = (8 * torch.rand(2, generator=draw)).tolist()
        clip = torch.stack([disc(20, x + t, y + k % 3 * t, k % 3) for t in range(9)], 1)
        orn.data.save_mp4(clip, folder / "clips" / f"{k:02}.mp4", fps=8)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks, with the substitutions."""
    for large, small in SMALLER:
        if large not in text:
            raise SystemExit(f"the README no longer has {large!r}: change SMALLER in {Path(__file__).name}")
        text = text.replace(large, small)
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell(line: str) -> None:
    """Run one line in this process, since one of its own would import for longer than most of them run.

    SystemExit with its output where it fails.
    """
    from running import ornstein

    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        unknown = [name for group in re.findall(r"\[(.*?)\]", line) for name in group.split(",") if name not in extras]
        if unknown or "constraints.txt" not in words:
            raise SystemExit(f"{line}: unknown extras {unknown}, or no constraints")
        return
    if words[0] != "ornstein":
        raise SystemExit(f"a line that this script does not know how to run: {line}")
    began = time.monotonic()
    done = ornstein(*words[1:])
    if done.exit_code:
        raise SystemExit(f"{line}\nended with {done.exit_code}:\n{done.output}\n{done.exception!r}")
    print(f"{time.monotonic() - began:6.1f} s  {shlex.join(words)}", flush=True)


def main() -> None:
    """Run the blocks of the README given, or of the repository's own."""
    from running import few_choices

    page = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "README.md"
    walked = blocks(page.read_text())
    names: dict[str, object] = {"__name__": "readme"}
    with tempfile.TemporaryDirectory() as place, few_choices():
        folder = Path(place)
        material(folder)
        os.chdir(folder)
        for language, block in walked:
            if language == "python":
                exec(compile(block, str(page), "exec"), names)
                print(f"  python  {block.strip().splitlines()[-1]}", flush=True)
            elif language == "sh":
                for line in block.splitlines():
                    shell(line)
            else:
                raise SystemExit(f"a block of {language!r}: write sh or python")
        missing = [path for path in MADE if not (folder / path).is_file()]
        if missing:
            raise SystemExit(f"the README's commands did not make {', '.join(missing)}")
        os.chdir(ROOT)
    print(f"{len(walked)} blocks of {page.name} run")


if __name__ == "__main__":
    main()
