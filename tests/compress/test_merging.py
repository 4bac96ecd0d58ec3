"""Merged tokens: exact where nothing, or nothing different, is merged; the share that is asked for otherwise."""

import pytest
import torch

import ornstein as orn
from ornstein.compress.merging import Merged, merged
from ornstein.errors import UserError
from ornstein.nets import DiT, UNet


def randomised(net):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draw)
    return net.eval()


NETS = {
    "images": (lambda: DiT(1, 16, 3, patch=2, width=32, depth=2, heads=2), (1, 16, 16)),
    "odd": (lambda: DiT(1, (10, 14), patch=2, width=32, depth=2, heads=2, text_width=6), (1, 10, 14)),
    "full": (lambda: DiT(1, 8, frames=3, patch=2, width=32, depth=2, heads=2, time="full"), (1, 3, 8, 8)),
    "factorised": (lambda: DiT(1, 8, frames=3, patch=2, width=32, depth=2, heads=2), (1, 3, 8, 8)),
}


def given(net):
    return (
        {"text": torch.randn(2, 4, 6), "text_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]) > 0} if net.text else {}
    )


@pytest.mark.parametrize("name", NETS)
def test_a_share_of_nothing_is_the_network_and_more_is_not(name):
    make, shape = NETS[name]
    net = randomised(make())
    x, log_snr, cond = torch.randn(2, *shape), torch.tensor([-1.0, 2.0]), given(net)
    assert torch.equal(Merged(net, 0.0)(x, log_snr, **cond), net(x, log_snr, **cond))
    counts = []  # of the tokens of the first block: of the network, and merged
    net.blocks[0].register_forward_hook(lambda _, args, __: counts.append(args[0].shape[1]))
    plain, merging = net(x, log_snr, **cond), Merged(net, 0.4)
    other = merging(x, log_snr, **cond)  # its blocks hold those of the network, which are left as they were
    assert other.shape == x.shape and other.isfinite().all() and not torch.equal(other, plain)
    frames = 3 if name == "full" else 1
    places = frames * (shape[-1] // 2) * (shape[-2] // 2)
    targets = frames * -(-shape[-1] // 4) * -(-shape[-2] // 4)
    assert counts[0] - counts[1] == min(int(0.4 * places), places - targets)
    assert net.blocks[0] is merging.net.blocks[0].block


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_equal_tokens_merge_without_error(ratio):
    """Scores know how many tokens one stands for. Without places, a picture of equal squares has equal tokens."""
    net = randomised(DiT(1, 16, patch=2, width=32, depth=3, heads=2))
    rotation = DiT._rotation

    def nowhere(self, *args):
        turned = rotation(self, *args)
        return type(turned)(torch.ones_like(turned.cosine), torch.zeros_like(turned.sine))

    x = torch.randn(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiT, "_rotation", nowhere)
        log_snr = torch.tensor([-1.0, 2.0])
        torch.testing.assert_close(Merged(net, ratio)(x, log_snr), net(x, log_snr), rtol=1e-4, atol=1e-4)


def test_a_denoiser_samples_with_classes_and_guidance():
    net = randomised(DiT(1, 16, 3, patch=2, width=32, depth=2, heads=2))
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 16, 16), ("a", "b", "c"))).eval()
    small = merged(d, 0.3)
    assert small.conditions == d.conditions
    x = orn.sample(small, (3, 1, 16, 16), steps=2, cond={"label": torch.tensor([0, 1, 2])}, guidance=2.0)
    alone = orn.sample(small, (1, 1, 16, 16), steps=2, cond={"label": torch.tensor([0])}, guidance=2.0)
    torch.testing.assert_close(x[:1], alone, rtol=1e-4, atol=1e-4)  # what is merged is each sample's own


def test_what_cannot_be_merged_is_refused_by_name():
    process = orn.Process(orn.schedules.Cosine())
    unet = orn.Denoiser(UNet(1, 8, width=8, multipliers=(1, 2), depths=(1, 1)), process, data=orn.Data((1, 8, 8)))
    with pytest.raises(UserError, match="this UNet has none"):
        merged(unet, 0.3)
    dit = orn.Denoiser(DiT(1, 8, width=16, depth=1, heads=2), process, data=orn.Data((1, 8, 8)))
    with pytest.raises(UserError, match="share of 0 to"):
        merged(dit, 0.8)
