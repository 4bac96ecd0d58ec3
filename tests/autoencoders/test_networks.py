"""The convolutional encoder and decoder: what they see, and the blocks they share with the U-Net."""

import pytest
import torch

from ornstein.autoencoders.networks import Decoder, Encoder, Plan, check_factor, patch_of
from ornstein.nets.blocks import Block, Stage


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net


@pytest.mark.parametrize(("size", "factor", "patch"), [(8, 2, 1), (32, 8, 1), (64, 4, 2), (64, 1, 1), (256, 8, 4)])
def test_patches_are_for_large_images(size: int, factor: int, patch: int):
    assert patch_of(size, factor) == patch
    plan = Plan(size, factor, 16, (1, 1, 1), 16)
    assert plan.resolutions[0] == size // patch
    assert plan.resolutions[-1] == size // factor


def test_depths_are_of_the_first_middle_and_last_level():
    assert Plan(32, 8, 16, (1, 2, 3), 0).depths == [1, 2, 2, 3]
    assert Plan(32, 1, 16, (1, 2, 3), 0).depths == [3]
    assert Plan(32, 8, 16, (1, 2, 3), 0).widths == [16, 32, 32, 32]
    with pytest.raises(ValueError, match="three positive numbers"):
        Plan(32, 8, 16, (1, 2), 0)


@pytest.mark.parametrize(("size", "factor"), [(16, 4), (64, 4)])
def test_where_the_image_is_the_latents_are(size: int, factor: int):
    """A pixel reaches the latents about it and no farther ones (without attention), and back again."""
    plan = Plan(size, factor, 16, (1, 1, 1), 0)
    encoder, decoder = shaken(Encoder(1, 2, plan)), shaken(Decoder(2, 1, plan))
    x = torch.randn(1, 1, size, size, requires_grad=True)
    z = encoder(x)
    assert z.shape == (1, 2, size // factor, size // factor)
    y = decoder(z)
    assert y.shape == x.shape
    z = torch.randn_like(z, requires_grad=True)
    (gradient,) = torch.autograd.grad(decoder(z)[0, 0, size // 2, size // 2], z)
    # group norms see all of the image, but faintly: the nearest latent counts by far the most
    strength = gradient[0].abs().sum(0)
    row, column = divmod(int(strength.argmax()), size // factor)
    assert abs(row - size // factor // 2) <= 1
    assert abs(column - size // factor // 2) <= 1


def test_a_new_decoder_says_0():
    plan = Plan(16, 4, 16, (1, 1, 1), 16)
    assert torch.equal(Decoder(3, 1, plan)(torch.randn(2, 3, 4, 4)), torch.zeros(2, 1, 16, 16))


def test_attention_stands_in_the_last_block_where_latents_are_small():
    plan = Plan(32, 4, 16, (1, 1, 2), 8)
    assert [(level, block) for level in range(3) for block in range(2) if plan.attends(level, block)] == [(2, 1)]
    assert not Plan(32, 4, 16, (1, 1, 2), 4).attends(2, 1)


def test_a_block_without_embedding_has_its_own_scale_and_shift():
    plain, modulated = Block(16, 32, 0, down=True), Block(16, 32, 8, down=True)
    assert plain.modulation is None
    assert plain.norm2.affine
    assert not modulated.norm2.affine
    x = torch.randn(2, 16, 8, 8)
    assert Stage([plain])(x).shape == (2, 32, 4, 4)
    # with scale and shift of the modulation as its own, it is the same function
    torch.nn.init.normal_(modulated.conv2.weight)
    plain.load_state_dict({k: v for k, v in modulated.state_dict().items() if "modulation" not in k}, strict=False)
    embedding = torch.randn(1, 8)
    assert modulated.modulation is not None
    scale, shift = modulated.modulation(embedding)[0].chunk(2)
    with torch.no_grad():
        plain.norm2.weight.copy_(1 + scale)
        plain.norm2.bias.copy_(shift)
    torch.testing.assert_close(plain(x), modulated(x, embedding.expand(2, -1)), rtol=1e-4, atol=1e-4)


def test_factors_that_do_not_divide():
    check_factor(28, 4)
    with pytest.raises(ValueError, match="the nearest 28 or 32, or factor 2 for this one"):
        check_factor(30, 4)
