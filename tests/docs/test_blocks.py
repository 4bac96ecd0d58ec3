"""The blocks of the pages work: Python runs, the tutorials' commands run, and every other command is parsed."""

import ast
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

import ornstein as orn
from ornstein.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TUTORIALS = [DOCS / "start.md", *(p for p in PAGES if p.parent.name == "tutorials" and p.name != "index.md")]
COMMANDS = typer.main.get_command(app)

# Sizes and durations of the pages, and what a test runs in their place.
SHORT = [("--minutes 2 ", "--steps 4 --batch 8 --net xs "), ("-n 40", "-n 10"), ("steps=100", "steps=10")]
SMALLER: dict[str, list[tuple[str, str]]] = {
    "likelihood.md": [
        ("vlb(d, x0)", "vlb(d, x0, terms=2)"),
        ('ode(d, x0, dequantisation="uniform")', 'ode(d, x0, dequantisation="uniform", steps=1)'),
        ("fit_dequantiser(d, training_images)", "fit_dequantiser(d, training_images, steps=2)"),
        ("ode(d, x0, dequantisation=q)", "ode(d, x0, dequantisation=q, steps=1)"),
    ],
    "faces-world.md": [
        ("frames=48", "frames=4"),
        ("expand(48", "expand(4"),
        ("es(100, seed", "es(4, seed"),
        ("arange(100)", "arange(4)"),
    ],
    "start.md": [*SHORT, ("(2000, 1)", "(20, 1)")],
    "tutorials/images.md": [
        ("--size 32 --minutes 30", "--size 8 --steps 4 --batch 8 --net xs --sample-every 0"),
        ("--resume --minutes 60", "--resume --steps 6"),
        ("-n 64 --steps 20", "-n 4 --steps 2"),
        ("-n 16 --class cats", "-n 2 --steps 2 --class cats"),
        ("evaluate runs/photos", "evaluate runs/photos -n 8 --steps 2 --seeds 1 --images 1"),
        ("--steps 5,8", "--steps 2 --trajectories 2 --iterations 1"),
        ("--steps 8 --out quick", "-n 2 --steps 2 --out quick"),
        ("(4, 3, 32, 32)", "(4, 3, 8, 8)"),
    ],
    "tutorials/video.md": [
        ("--frames 16 --size 32", "--frames 4 --size 16"),
        ("length=16", "length=4"),
        ("(1, 3, 16, 32, 32)", "(1, 3, 4, 16, 16)"),
        ("--given-frames --minutes 60", "--given-frames --steps 2 --batch 2 --net xs --sample-every 0"),
        ("runs/clips -n 8", "runs/clips -n 1 --steps 2"),
        ("--noise warped:0.1 --minutes 60", "--noise warped:0.1 --steps 2 --batch 2 --net xs --sample-every 0"),
        ("runs/moving -n 8", "runs/moving -n 1 --steps 2"),
        ("np.zeros((15, 2, 32, 32)", "np.zeros((3, 2, 16, 16)"),
        ("--first 4 -n 2", "--first 2 -n 1 --steps 2"),
        ("--frames 24 -n 2", "--frames 6 -n 1 --steps 2"),
    ],
    "tutorials/latent.md": [
        ("--size 64 --model kl --minutes 30", "--size 8 --model kl --steps 2 --batch 8 --net xs"),
        ("runs/ae --minutes 60", "runs/ae --steps 2 --batch 8 --net xs --sample-every 0"),
        ("-n 16", "-n 2 --steps 2"),
        ("evaluate runs/latent", "evaluate runs/latent -n 8 --steps 2 --seeds 1 --images 1"),
        ("size=64", "size=8"),
    ],
    "tutorials/swap.md": [
        (
            "minutes=6, size=64, people=100, photos=8192, frames=48",
            "minutes=0.04, size=32, people=2, photos=64, frames=2",
        ),
    ],
    "tutorials/pipelines.md": [
        ("--steps 20 -n 4", "--steps 2 -n 2"),
        ("--steps 5,8", "--steps 3 --trajectories 2 --iterations 1"),
        ("--steps 8 -n 4 --out quick", "--steps 3 -n 1 --out quick"),
        ("steps=20", "steps=2"),
        ("steps=50", "steps=2"),
        ('"ddim", 50', '"ddim", 2'),
        ("steps=12", "steps=2"),
    ],
    "tutorials/text.md": [
        (
            "--size 32 --captions auto --minutes 60",
            "--size 8 --captions auto --steps 4 --batch 8 --net xs --sample-every 0",
        ),
        ("-n 16 --out red\n", "-n 2 --steps 2 --out red\n"),
        ("-n 16 --out redder", "-n 2 --steps 2 --out redder"),
        ("--guidance 3 --out both", "--guidance 3 --steps 2 --out both"),
        ("--steps 8\n", "--steps 2 --trajectories 2 --iterations 1\n"),
        ("--steps 8 --out quick", "--steps 2 --out quick"),
        ("steps=20", "steps=2"),
    ],
    "tutorials/editing.md": [
        ("--minutes 2", "--steps 4 --batch 8 --net xs --sample-every 0"),
        ("-n 8", "-n 2 --steps 2"),
        ("-n 19", "-n 2 --steps 2"),
        ("-n 9", "-n 3 --steps 2 --tolerance 0.1"),
        ("n=8, seed=1", "n=2, seed=1, steps=2"),
        ("spread(answers, 8)", "spread(answers, 2)"),
        ("n=19)", "n=2, steps=2)"),
    ],
    "tutorials/personalize.md": [
        ("--steps 400", "--steps 2 --previews 1 --size 16"),
        ("--guidance 5 --steps 20 -n 4", "--guidance 5 --steps 2 -n 1"),
        ("--steps 20 -n 4 --out weaker", "--steps 2 -n 1 --out weaker"),
        ("steps=20", "steps=2"),
        ("--steps 800", "--steps 3"),
    ],
    "tutorials/word.md": [
        ("--steps 400", "--steps 2 --previews 1 --size 16"),
        ("--steps 20 -n 2", "--steps 2 -n 1"),
    ],
    "tutorials/likelihood.md": [
        ("--minutes 5", "--steps 4 --batch 8 --net xs --sample-every 0"),
        ("vlb,ode --images 128", "vlb --images 2 -n 8 --steps 2 --seeds 1"),
        ("terms=50", "terms=2"),
        ("batch(range(32))", "batch(range(4))"),
        ("x0[:4]", "x0[:1]"),
        ("steps=32", "steps=2"),
        ("steps=50", "steps=5"),
        ("batch(range(200))", "batch(range(20))"),
    ],
    "tutorials/compress.md": [
        ("--net s --batch 64 --steps 1500", "--net xs --batch 8 --steps 2 --sample-every 0"),
        ("--macs 0.5", "--macs 0.5 --steps 2"),
        ("--steps 300", "--steps 2"),
        ("-n 20 --steps 20", "-n 1 --steps 2"),
    ],
    "tutorials/processes.md": [
        ("--batch 64 --steps 2000", "--batch 8 --steps 2 --net xs --sample-every 0"),
        (
            "torchrun --nproc-per-node 2 -m ornstein sample runs/digits -n 64",
            "ornstein sample runs/digits -n 4 --steps 2",
        ),
        ("--steps 4000", "--steps 3"),
    ],
}
# These need a model of several minutes or hours, or photographs of people: they are only parsed.
PARSED_ONLY = ("faces", "swap")
# Lines of other programs that the pages may have.
OTHERS = ("make", "pip", "python", "python3", "accelerate", "torchrun", "--nproc-per-node", "-m")


def name(page: Path) -> str:
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page, as small as a test needs them."""
    text = page.read_text()
    for large, small in SMALLER.get(name(page), []):
        assert large in text, f"{name(page)} does not say {large!r} any more"
        text = text.replace(large, small)
    yield from re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines(block: str) -> Iterator[str]:
    yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `ornstein` line of the page, in fenced and indented blocks (and the table of how-to)."""
    text = page.read_text()
    indented = "\n".join(re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE))
    inline = "\n".join(re.findall(r"`(ornstein .*?)`", text)) if page.name == "how-to.md" else ""
    for block in [b for language, b in blocks(page) if language in ("", "sh")] + [indented, inline]:
        for line in lines(block):
            if found := re.search(r"(?:^|-m )ornstein (.*)", line):
                words = shlex.split(found[1], comments=True)
                yield words[: words.index("&&")] if "&&" in words else words


def parse(words: list[str]) -> None:
    """Parse words as the command line does, without running the command."""
    command, words = COMMANDS, [w for w in words if w not in ("...", "[options]")]
    if words and words[0].startswith("--"):
        assert words[0] in {option for parameter in COMMANDS.params for option in parameter.opts}, words[0]
        return
    while (inner := getattr(command, "commands", None)) is not None:
        assert words and words[0] in inner, f"no command {' '.join(words)}"
        command, words = inner[words[0]], words[1:]
    command.make_context("ornstein", list(words))


@pytest.mark.parametrize("page", [p for p in PAGES if any(commands(p))], ids=name)
def test_commands_are_the_real_ones(page: Path) -> None:
    for words in commands(page):
        if not (len(words) > 1 and words[1] == "..."):
            try:
                parse(words)
            except Exception as error:
                pytest.fail(f"ornstein {' '.join(words)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize(
    "words", [["sample", "runs/photos", "--stepz", "3"], ["trane"], ["sample", "r", "--steps", "x"]]
)
def test_commands_that_are_not_are_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"stepz|no command trane|valid integer"):
        parse(words)


def prepared(page: Path) -> dict[str, Any]:
    """The names that a page uses without defining them."""
    if name(page) != "likelihood.md":
        return {"torch": torch}
    digits = orn.data.open_images("digits")
    torch.manual_seed(0)
    net = orn.nets.UNet(channels=1, size=8, width=8, multipliers=(1,), depths=(1,))
    return {
        "torch": torch,
        "d": orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 8, 8))),
        "x0": digits.batch([0, 1])[0],
        "training_images": digits.batch(range(64))[0],
    }


@pytest.mark.parametrize(
    "page", [p for p in PAGES[1:] if p not in TUTORIALS and any(lang == "python" for lang, _ in blocks(p))], ids=name
)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = prepared(page) | {"__name__": "page"}
    for language, block in blocks(page):
        if language == "python":
            tree = ast.parse(block, name(page))
            if name(page) == "faces.md":  # it swaps with a trained model: what it imports exists
                tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(tree, name(page), "exec"), names)


def run_command(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"ornstein {' '.join(words)}\n{result.output}"


def two_processes(words: list[str]) -> None:
    """As torchrun starts them; its own search for an address takes a minute on a machine without a network."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "ornstein", *words],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for child in children:
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output


def run(page: Path) -> dict[str, Any]:
    """Run all blocks of a page in order; return the names that its Python defined."""
    names: dict[str, Any] = {"__name__": "page"}
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, name(page), "exec"), names)
        for line in lines(block) if language == "sh" else ():
            program, *words = shlex.split(line, comments=True)
            if program == "torchrun" and words[:2] == ["--nproc-per-node", "2"]:
                two_processes(words[words.index("ornstein") + 1 :])
            elif program == "ornstein" and words[0] not in PARSED_ONLY:
                run_command(words)
            else:
                assert program in (*OTHERS, "ornstein"), line
    return names


def disc(size: int, at: tuple[float, float], colour: int) -> Tensor:
    """A bright disc on a dim ramp, (3, size, size) in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ground = (x + y) / (2 * size) - 1
    inside = (y - at[0]) ** 2 + (x - at[1]) ** 2 < (size / 5) ** 2
    return torch.stack([torch.where(inside, 0.9 if k == colour else 0.1, ground) for k in range(3)])


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ of two classes and clips/, in which the tutorials are run."""
    folder = tmp_path_factory.mktemp("tutorials")
    draw = torch.Generator().manual_seed(0)
    for label, kind in enumerate(("cats", "dogs")):
        (folder / "photos" / kind).mkdir(parents=True)
        for k in range(50):
            y, x = (16 * torch.rand(2, generator=draw)).tolist()
            orn.data.save_grid(disc(20, (y, x), label)[None], folder / "photos" / kind / f"{k:04}.png")
    (folder / "clips").mkdir()
    for k in range(12):
        y, x = (8 * torch.rand(2, generator=draw)).tolist()
        film = torch.stack([disc(20, (y + t, x + k % 3 * t), k % 3) for t in range(9)], dim=1)
        orn.data.save_mp4(film, folder / "clips" / f"{k:02}.mp4", fps=8)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=name)
def test_tutorials_run(page: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("photos", "clips"):
        (tmp_path / given).symlink_to(material / given)
    if page.name in ("pipelines.md", "personalize.md", "word.md"):
        pytest.importorskip("peft")
        from interop import tiny

        tiny.build("sd1", tmp_path / "pipelines" / "sd")
    if page.name == "text.md":
        (tmp_path / "captioned").mkdir()
        for k, colour in enumerate(["red", "green", "blue"] * 10):
            orn.data.save_grid(disc(20, (8, 10), k % 3)[None], tmp_path / "captioned" / f"{k}.png")
            (tmp_path / "captioned" / f"{k}.txt").write_text(f"a {colour} disc\n")
        (tmp_path / "prompts.txt").write_text("a red disc\na green disc\n")
    if page.name == "processes.md":
        pytest.importorskip("accelerate")
    names = run(page)
    made = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    expected = {
        "start.md": ["runs/digits/report.html", "runs/digits/samples/grid.png", "threes/grid.png", "sevens.png"],
        "images.md": ["runs/photos/evaluation/report.html", "more-cats/grid.png", "quick/grid.png", "half-way.png"],
        "video.md": ["noise.png", "runs/clips/samples/sheet.png", "predicted/sheet.png", "long/sheet.png"],
        "latent.md": ["runs/ae/report.html", "runs/latent/evaluation/report.html", "latent.png"],
        "swap.md": ["runs/swap/report.html", "swaps.png"],
        "likelihood.md": ["runs/digits/evaluation/evaluation.json"],
        "text.md": ["runs/words/report.html", "red/grid.png", "redder/grid.png", "both/grid.png", "discs.png"],
        "pipelines.md": ["pipelines/sd.ornstein/samples/grid.png", "quick/grid.png"],
        "personalize.md": ["runs/cat/report.html", "runs/cat/lora_kohya.safetensors", "weaker/grid.png"],
        "editing.md": ["filled/a-all.png", "restored/a-uncertainty.png", "varied/edit.json", "path/a-all.png"],
        "word.md": ["runs/mine/learned_embeds.safetensors", "runs/mine/samples/grid.png"],
        "processes.md": ["runs/digits/samples/grid.png"],
        "compress.md": ["runs/small/samples/grid.png", "half/grid.png", "small-onnx/model.onnx", "pictures/grid.png"],
    }[page.name]
    assert set(expected) <= made, sorted(made)
    if page.name == "word.md":
        assert torch.allclose(names["theirs"], names["ours"], atol=1e-5)
    if page.name == "likelihood.md":
        assert names["odd"].mean() != names["bound"].total.mean() and names["learned"].total.isfinite().all()
