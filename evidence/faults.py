"""kill -9 at random moments of training, checkpointing and sampling, and damaged states: what is left at the end?

Every run that is killed is started again until it is done, and must then be what the undisturbed one is, bit for bit:
weights, moments and average of the trainer, the model, the curve, and the pictures of a sampling. The model is tiny, so
that most of its time goes into what is to be tested. Prints a table for docs/reliability.md; exit code 1 where a fault
was not survived.

    python evidence/faults.py            # 100 kills, and 20 damaged states
    python evidence/faults.py -n 30 --seed 1
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.cli.shards import write_images
from ornstein.data import open_images
from ornstein.nets import UNet
from ornstein.sampling import sample
from ornstein.training import TrainConfig, train
from ornstein.training.state import STATE

STEPS, SAMPLES = 30, 16
IMAGES = open_images("digits")  # read once, by the parent of all
KINDS = ("training", "checkpointing", "sampling")


def net() -> orn.Denoiser:
    torch.manual_seed(0)
    small = UNet(channels=1, size=8, classes=0, width=16, multipliers=(1, 2), depths=(1, 1), attention=(4,))
    return orn.Denoiser(small, orn.Process(orn.schedules.Cosine()), prediction="v", data=orn.Data((1, 8, 8)))


def training(out: Path) -> None:
    """The training to the end, from wherever it stopped."""
    config = TrainConfig(steps=STEPS, batch=8, checkpoint_every=5, warmup=3)
    for _ in train(net(), IMAGES, config, out, resume=out.exists()):
        pass


def sampling(run: Path, out: Path) -> None:
    """The pictures of a trained run that are not there yet."""
    denoiser = orn.load(run)

    def make(rows: range) -> torch.Tensor:
        return sample(denoiser, (len(rows), 1, 8, 8), "ddpm", 5, seed=3, first=rows.start)

    write_images(out, {"steps": 5}, SAMPLES, 2, make)


def fork(f: Callable[..., None], *arguments: Path, die_at_sync: int = 0) -> int:
    """A process that runs f; with `die_at_sync` it kills itself at that fsync, in the middle of a checkpoint."""
    pid = os.fork()
    if pid:
        return pid
    fsync, calls = os.fsync, 0

    def dying(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == die_at_sync:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = dying
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (to the end of the process)
        warnings.simplefilter("ignore")
        f(*arguments)
    except BaseException as error:  # told to the parent by the exit code
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def wait(pid: int) -> bool:
    """Whether the process was killed. Raises RuntimeError where it failed."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"a process ended with {os.WEXITSTATUS(status)}")
    return False


def same_run(a: Path, b: Path) -> bool:
    for name in (STATE, Path("model.safetensors")):
        first, second = load_file(a / name), load_file(b / name)
        if first.keys() != second.keys() or not all(torch.equal(first[k], second[k]) for k in first):
            return False
    curves = [
        [(line["step"], line["loss"]) for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
        for run in (a, b)
    ]
    return curves[0] == curves[1] and not list(b.rglob("*.partial"))


def same_files(a: Path, b: Path) -> bool:
    names = [sorted(p.name for p in folder.iterdir() if p.suffix == ".png") for folder in (a, b)]
    return names[0] == names[1] and all((a / name).read_bytes() == (b / name).read_bytes() for name in names[0])


def killed(
    kind: str, root: Path, whole: Path, pictures: Path, chance: random.Random, most: int, length: float
) -> tuple[int, bool]:
    """A run that is killed up to `most` times and then left alone: how often it was, and whether it is the same.

    length: the seconds that the undisturbed one takes.
    """
    out, kills = root / kind, 0
    shutil.rmtree(out, ignore_errors=True)
    arguments = (sampling, whole, out) if kind == "sampling" else (training, out)
    try:
        while kills < most:
            if kind == "checkpointing":
                # six a checkpoint: the state, the model and the config, each and its folder
                pid = fork(*arguments, die_at_sync=chance.randrange(1, 25))
            else:
                pid = fork(*arguments)
                time.sleep(chance.uniform(0, length))
                os.kill(pid, signal.SIGKILL)
            if not wait(pid):
                break
            kills += 1
        wait(fork(*arguments))
    except RuntimeError as error:
        print(f"{kind}: {error}", file=sys.stderr)
        return kills, False
    return kills, same_files(pictures, out) if kind == "sampling" else same_run(whole, out)


def damaged(root: Path, half: Path, whole: Path, chance: random.Random, cut: bool) -> bool:
    """Whether a run whose last state has a byte changed, or is cut short, still ends as the undisturbed one."""
    out = root / "damaged"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(half, out)
    data = bytearray((out / STATE).read_bytes())
    place = chance.randrange(len(data))
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << chance.randrange(8)
    (out / STATE).write_bytes(data)
    try:
        wait(fork(training, out))
    except RuntimeError as error:
        print(f"byte {place} of {len(data)}: {error}", file=sys.stderr)
        return False
    return same_run(whole, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100, help="kills in all")
    parser.add_argument("--damaged", type=int, default=20, help="damaged states in all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(given.seed)
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole, half, pictures = root / "whole", root / "half", root / "pictures"
        began = time.monotonic()
        wait(fork(training, whole))
        trained = time.monotonic()
        wait(fork(sampling, whole, pictures))
        lengths = {"training": trained - began, "checkpointing": 0.0, "sampling": time.monotonic() - trained}
        while sum(tried[kind] for kind in KINDS) < given.n:
            kind = min(KINDS, key=lambda k: tried[k])
            most = min(7, given.n - sum(tried.values()))
            kills, same = killed(kind, root, whole, pictures, chance, most, lengths[kind])
            tried[kind] += kills
            survived[kind] += kills * same
            print(f"{sum(tried.values())} of {given.n} kills", file=sys.stderr)
        wait(fork(training, half, die_at_sync=19))  # right after its third checkpoint
        for i in range(given.damaged):
            kind = ("state with a bit flipped", "state cut short")[i % 2]
            tried[kind] += 1
            survived[kind] += damaged(root, half, whole, chance, cut=i % 2 == 1)
    print("| fault | tried | survived |\n|---|---|---|")
    for kind, count in tried.items():
        print(f"| {'kill -9 while ' + kind if kind in KINDS else kind} | {count} | {survived[kind]} |")
    sys.exit(tried != survived)


if __name__ == "__main__":
    main()
