"""A mean likelihood over processes: each takes a part of the data, and together they find what one finds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Run by each process: the images `first`.. of its rank, then one sum over all processes.
PART = """
import json, sys, torch
from torch import distributed
import ornstein as orn

rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
torch.manual_seed(0)
net = orn.nets.UNet(1, 8, width=8, multipliers=(1,), depths=(1,), attention=())
for p in net.parameters():
    torch.nn.init.normal_(p, std=0.1)
d = orn.Denoiser(net.double(), orn.Process(orn.schedules.Cosine()), "v")
levels = torch.randint(0, 256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
first, last = (0, 7) if world == 1 else ((0, 5), (5, 7))[rank]
x0 = orn.data.to_unit(levels[first:last])
bound = orn.likelihood.vlb(d, x0, 30, terms=4, first=first).total
flow = orn.likelihood.ode(d, x0, "hutchinson", steps=2, dequantisation="uniform", first=first).value
total = torch.stack([bound.sum(), flow.sum(), torch.tensor(float(len(x0))).double()])
distributed.all_reduce(total)
if rank == 0:
    print(json.dumps((total[:2] / total[2]).tolist()))
distributed.destroy_process_group()
"""


def means(world: int, store: Path) -> list[float]:
    commands = [[sys.executable, "-c", PART, str(rank), str(world), str(store)] for rank in range(world)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    out = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * world, out
    return json.loads(out[0][0].splitlines()[-1])


def test_one_and_two_processes_find_the_same_mean(tmp_path: Path):
    one, two = means(1, tmp_path / "one"), means(2, tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-9)
    assert one[0] > 0 > one[1]
