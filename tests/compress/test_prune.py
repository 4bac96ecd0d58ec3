"""Pruning: the network of the kept channels is the large one without the others, and the budget is met."""

import pytest
import torch

import ornstein as orn
from ornstein.compress.budget import TOLERANCE, multiply_adds, network_macs, widths_for
from ornstein.compress.groups import channel_groups
from ornstein.compress.prune import importance_of, input_moments, kept_channels, narrowed, refitted
from ornstein.errors import UserError
from ornstein.nets import UNet
from pruned_nets import NETS, SHAPES, randomised


def builder(net):
    return lambda widths: type(net)(**net.config, widths=dict(widths))


def cut(net, widths):
    """The net with these widths, by magnitude."""
    groups = channel_groups(net)
    widths = {group.name: group.size for group in groups} | widths
    kept = kept_channels(groups, widths, dict(net.named_parameters()), torch.Generator())
    small = builder(net)(widths).eval()
    small.load_state_dict(narrowed(groups, net.state_dict(), kept))
    return small, kept


@pytest.mark.parametrize("name", NETS)
def test_every_tensor_of_the_small_network_is_cut_to_the_size_that_its_constructor_makes(name):
    net = randomised(NETS[name]())
    groups = channel_groups(net)
    small, _ = cut(net, {group.name: group.parts * max(1, group.size // group.parts // 2) for group in groups})
    x = torch.randn(2, *SHAPES[name])
    assert small(x, torch.zeros(2)).shape == net(x, torch.zeros(2)).shape
    again = type(small)(**small.config)
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(again.eval()(x, torch.zeros(2)), small(x, torch.zeros(2)), rtol=0, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_all_channels_are_the_network_itself(name):
    net = randomised(NETS[name]())
    small, _ = cut(net, {})
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "kind"), [("dit", "heads"), ("dit", "inner"), ("unet", "queries"), ("stem", "queries")]
)
def test_channels_without_any_weight_are_removed_first_and_nothing_changes(name, kind):
    """No norm runs over these, so the small network computes the same numbers."""
    net = randomised(NETS[name]())
    groups = [group for group in channel_groups(net) if group.kind == kind]
    state, widths, gone = net.state_dict(), {}, {}
    for group in groups:
        each = group.size // group.parts
        removed = (torch.arange(0, each, 2) + each * torch.arange(group.parts)[:, None]).flatten()
        for member in group.members:
            state[member.name].index_fill_(member.axis, member.rows(removed, group.size), 0.0)
        widths[group.name], gone[group.name] = group.size - len(removed), removed
    small, kept = cut(net, widths)
    for group in groups:
        assert not set(kept[group.name].tolist()) & set(gone[group.name].tolist())
    x, log_snr = torch.randn(3, *SHAPES[name]), torch.tensor([-3.0, 0.0, 4.0])
    torch.testing.assert_close(small(x, log_snr), net(x, log_snr), rtol=1e-4, atol=1e-4)


def test_importance_adds_up_what_a_channel_has_in_every_member():
    net = randomised(NETS["dit"]())
    group = next(g for g in channel_groups(net) if g.name == "blocks.1.heads")
    block, c, d = net.blocks[1], 2, 8
    rows = torch.arange(c * d, (c + 1) * d)
    by_hand = sum(
        float(
            block.qkv.weight[k * 32 + rows].double().square().sum()
            + block.qkv.bias[k * 32 + rows].double().square().sum()
        )
        for k in range(3)
    )
    by_hand += float(
        block.temperature[:, c].double().square().sum() + block.out.weight[:, rows].double().square().sum()
    )
    assert float(importance_of(group, dict(net.named_parameters()))[c]) == pytest.approx(by_hand, rel=1e-6)


def test_multiply_adds_are_those_of_the_layers():
    conv, x = torch.nn.Conv2d(3, 5, 3, padding=1), torch.zeros(2, 3, 4, 6)
    assert multiply_adds(lambda: conv(x)) == 2 * 5 * 4 * 6 * 3 * 9
    q = torch.zeros(2, 3, 7, 4)
    assert multiply_adds(lambda: q @ q.transpose(-1, -2)) == 2 * 3 * 7 * 7 * 4


@pytest.mark.parametrize(
    ("name", "budget"), [("unet", 0.5), ("unet", 0.3), ("video", 0.6), ("dit", 0.5), ("clips", 0.7)]
)
def test_the_budget_is_met_by_measured_multiply_adds(name, budget):
    net = NETS[name]()
    widths, macs, full = widths_for(channel_groups(net), builder(net), SHAPES[name], budget)
    assert full == network_macs(net, SHAPES[name])
    assert macs == network_macs(builder(net)(widths), SHAPES[name])
    assert abs(macs / full - budget) <= TOLERANCE * budget


def test_a_budget_below_the_least_is_refused_with_the_least():
    net = NETS["dit"]()
    with pytest.raises(UserError, match=r"0\.01 cannot be met: the least of this network is 0\.\d+"):
        widths_for(channel_groups(net), builder(net), SHAPES["dit"], 0.01)


@pytest.mark.parametrize(
    "widths", [{"nothing": 3}, {"stem": 0}, {"encoder.0.0": -1}, {"stem": 33}, {"stem": 1.5}, {"level1": "x"}]
)
def test_widths_that_do_not_fit_are_refused(widths):
    with pytest.raises(ValueError, match="width"):
        UNet(1, 8, width=32, multipliers=(1, 2), depths=(1, 1), widths=widths)


def test_a_network_that_is_not_pruned_is_described_as_before():
    assert all("widths" not in make().config for make in NETS.values())


def test_other_networks_are_refused_by_name():
    with pytest.raises(UserError, match="a Linear cannot be compressed"):
        channel_groups(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("name", "kind"), [("dit", "inner"), ("unet", "queries")])
def test_features_that_repeat_kept_ones_are_taken_over_by_them(name, kind):
    """The removed channels equal the kept ones, so least squares gives their weights to these and nothing changes."""
    net = randomised(NETS[name]())
    groups = channel_groups(net)
    state = net.state_dict()
    kept = {group.name: torch.arange(group.size) for group in groups}
    for group in groups:
        if group.kind == kind:
            each = group.size // group.parts
            starts = each * torch.arange(group.parts)[:, None]
            first, second = ((torch.arange(i * each // 2, (i + 1) * each // 2) + starts).flatten() for i in (0, 1))
            for member in group.members:
                if member.axis == 0 and not member.query:
                    rows = member.rows(first, group.size), member.rows(second, group.size)
                    state[member.name][rows[1]] = state[member.name][rows[0]]
                elif member.axis == 0:  # values repeat; queries of the second half are 0, so that scores stay
                    copies = member.rows(first, group.size).chunk(member.copies)
                    others = member.rows(second, group.size).chunk(member.copies)
                    state[member.name][others[0]] = 0.0
                    if member.copies == 3:
                        state[member.name][others[2]] = state[member.name][copies[2]]
            if all(member.copies == 3 or member.axis for member in group.members) or kind == "inner":
                kept[group.name] = first
    widths = {name: len(channels) for name, channels in kept.items()}
    model = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data(SHAPES[name])).eval()
    draw = torch.Generator().manual_seed(0)
    moments = input_moments(model, groups, [(torch.randn(64, *SHAPES[name], generator=draw), {})], draw)
    x, t = torch.randn(4, *SHAPES[name], generator=draw), torch.zeros(4)

    def error(state):
        small = builder(net)(widths).eval()
        small.load_state_dict(narrowed(groups, state, kept))
        return float((small(x, t) - net(x, t)).square().mean())

    assert error(refitted(groups, state, kept, moments)) < 1e-3 * error(state)
