"""kill -9 at random moments, some of them in the middle of a write, and Ctrl-C: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ornstein.training.state import STATE

# Torch is imported once; every training is a fork of a parent that has run nothing yet.
WORKER = """
import importlib.util, os, random, signal, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("toys", sys.argv[1])
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
import torch
from ornstein.training import train
torch.set_num_threads(1)

def run(out, die_at_sync=0):
    calls, fsync = 0, os.fsync
    def dying(handle):
        nonlocal calls
        calls += 1
        if calls == die_at_sync:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)
    os.fsync = dying
    config = toys.tiny_config(steps=40, checkpoint_every=4)
    for state in train(toys.tiny_denoiser(), toys.Stripes(), config, out, resume=out.exists()):
        pass

def fork(*arguments):
    pid = os.fork()
    if pid == 0:
        run(*arguments)
        os._exit(0)
    return pid

whole, parts = Path(sys.argv[2]), Path(sys.argv[3])
begin = time.monotonic()
assert os.waitpid(fork(whole), 0)[1] == 0
length = time.monotonic() - begin
chance = random.Random(int(sys.argv[4]))
killed = 0
for kill in range(40):
    if killed == 10:
        break
    if kill % 2:
        pid = fork(parts, chance.randrange(1, 13))
    else:
        pid = fork(parts)
        time.sleep(chance.uniform(0.0, 0.15) * length)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    status = os.waitpid(pid, 0)[1]
    killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
assert os.waitpid(fork(parts), 0)[1] == 0
print(killed)
"""

INTERRUPTED = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("toys", sys.argv[1])
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
from ornstein.training import train
try:
    for state in train(toys.tiny_denoiser(), toys.Stripes(), toys.tiny_config(steps=10**6), Path(sys.argv[2])):
        print(state.step, flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""

TOYS = str(Path(__file__).with_name("conftest.py"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(script: str, *arguments: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script, TOYS, *arguments], env=ENVIRONMENT, text=True, **kwargs)


@pytest.mark.slow
def test_killed_ten_times_is_the_same_run(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    seed = time.time_ns() % 10**6
    process = start(WORKER, str(whole), str(parts), str(seed), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"seed {seed}: {err}"
    assert int(out) == 10, f"seed {seed}: killed {out.strip()} times only"
    for file in (STATE, "model.safetensors"):
        a, b = load_file(whole / file), load_file(parts / file)
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == [], f"seed {seed}"
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in load_file(whole / STATE))
    curves = [
        [(line["step"], line["loss"]) for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
        for run in (whole, parts)
    ]
    assert curves[0] == curves[1]
    assert {p.name for p in parts.rglob("*") if p.is_file()} == {p.name for p in whole.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_ctrl_c_saves_and_says_so(tmp_path):
    process = start(INTERRUPTED, str(tmp_path / "run"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            break
    process.send_signal(signal.SIGINT)
    last = [int(line) for line in process.stdout.read().split()]
    assert process.wait(timeout=30) == 130
    step = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["step"]
    # the step it came in is saved; the caller may not have seen it
    assert step - (last[-1] if last else 5) in (0, 1)
