"""Depth: a network without some of its residual branches, and which ones are left out."""

import copy
import json

import pytest
import torch

import ornstein as orn
from ornstein.compress.budget import network_macs
from ornstein.compress.depth import branches, shallower, without
from ornstein.compress.groups import channel_groups
from pruned_nets import NETS, SHAPES, randomised
from running import done, ornstein, refused

_FAST = ("--device", "cpu", "--no-report", "-q")


def silenced(net, names):
    """The network with the last layer of these branches at zero: they add nothing, and are still there."""
    last = {"attention": "attention.out", "reading": "reading.out", "heads": "out", "mlp": "down"}
    with torch.no_grad():
        for name in names:
            block, _, part = name.rpartition(".")
            layer = f"{block}.{last[part]}" if part in last else f"{name}.conv2"
            prefix = "image." if hasattr(net, "image") else ""
            for p in net.get_submodule(prefix + layer).parameters():
                p.zero_()
    return net


@pytest.mark.parametrize("name", NETS)
def test_a_branch_left_out_adds_nothing(name):
    """Each alone, and all together, is the network whose branch ends in zeros; the streams pass through."""
    x, log_snr = torch.randn(2, *SHAPES[name]), torch.tensor([-1.0, 2.0])
    net = randomised(NETS[name]())
    every = branches(net)
    assert len(every) == len(set(every)) >= 4
    for names in ([each] for each in every) if name in ("dit", "unet") else (every[::2],):
        small = without(net, names)
        expected = silenced(copy.deepcopy(net), names)(x, log_snr)
        torch.testing.assert_close(small(x, log_snr), expected, rtol=1e-5, atol=1e-5)
    small, expected = without(net, every), silenced(copy.deepcopy(net), every)
    torch.testing.assert_close(small(x, log_snr), expected(x, log_snr), rtol=1e-5, atol=1e-5)
    assert branches(small) == [] and all(group.kind == "stream" for group in channel_groups(small))
    again = type(small)(**json.loads(json.dumps(small.config)))
    again.load_state_dict(small.state_dict())


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_branches_that_add_nothing_go_first_and_the_predictions_stay(name):
    net = randomised(NETS[name]())
    idle = branches(net)[1::3]
    silenced(net, idle)
    data = orn.Data(SHAPES[name])
    model = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=data).eval()
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, *SHAPES[name], generator=draw), {})]
    full = network_macs(net, SHAPES[name])
    saved = full - network_macs(without(net, idle), SHAPES[name])
    small = shallower(model, 1 - saved / full, 1.0, batches, draw)
    assert set(branches(net)) - set(branches(small.net)) == set(idle)
    x = torch.randn(3, *SHAPES[name], generator=draw)
    torch.testing.assert_close(small(x, 0.4).x0, model(x, 0.4).x0, rtol=1e-5, atol=1e-5)


def test_a_shallow_run_is_a_run(tmp_path):
    run, out = tmp_path / "run", tmp_path / "small"
    done("train", "--data", "digits", "--net", "xs", "--steps", 4, "--batch", 16, "--out", run, *_FAST)
    said = done("compress", run, "--depth", 0.5, "--steps", 2, "--batch", 16, "--out", out, *_FAST[:3])
    assert "left out" in said
    large, small = orn.load(run), orn.load(out)
    share = network_macs(small.net, (1, 8, 8)) / network_macs(large.net, (1, 8, 8))
    assert share == pytest.approx(0.5, rel=0.03)
    assert len(branches(small.net)) < len(branches(large.net)) and 0 in small.net.config["widths"].values()
    done("compress", run, "--out", out, "--resume", "--steps", 3, *_FAST)
    done("compress", out, "--macs", 0.7, "--depth", 1, "--steps", 1, "--out", tmp_path / "twice", *_FAST)
    done("sample", tmp_path / "twice", "-n", 1, "--steps", 2, "--out", tmp_path / "s", "--device", "cpu")
    new = ("--out", tmp_path / "x", *_FAST)
    refused(ornstein("compress", run, "--depth", 0.5, "--steps", 0, *new), "--depth needs data")
    refused(ornstein("compress", run, "--depth", 1.5, *new), "--depth")
    refused(ornstein("compress", run, "--depth", 0.5, "--method", "int8", *new), "depth does nothing")
