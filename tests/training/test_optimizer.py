import pytest
import torch
from torch import nn

from ornstein.errors import UserError
from ornstein.nets import UNet
from ornstein.training import TrainConfig
from ornstein.training.optimizer import optimizer_of, orthogonal


def config(**settings):
    return TrainConfig(**{"optimizer": "muon", "learning_rate": 0.01, "weight_decay": 0.0} | settings)


def stepped(model, optimizer, seed=0):
    """One step by random gradients: how far each parameter went."""
    draw = torch.Generator().manual_seed(seed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)
    optimizer.step()
    return {name: (p - before[name]).detach() for name, p in model.named_parameters()}


def test_a_step_of_a_matrix_is_nearly_orthogonal_and_as_large_as_adamws():
    model = nn.ModuleDict({"wide": nn.Linear(96, 32), "conv": nn.Conv2d(32, 48, 3)})
    moved = stepped(model, optimizer_of(model, config()))
    for name in ("wide.weight", "conv.weight"):
        step = moved[name].flatten(1)
        # Newton and Schulz's iteration brings each singular value of the gradient into about (0.68, 1.13)
        values = torch.linalg.svdvals(step) / (0.01 * 0.2 * max(step.shape) ** 0.5)
        assert float(values.min()) > 0.6 and float(values.max()) < 1.25
        assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.25)


def test_the_first_step_is_along_the_polar_factor_of_the_gradient():
    model = nn.Linear(64, 32, bias=False)
    gradient = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    step = stepped(model, optimizer_of(model, config()))["weight"]
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert float(nn.functional.cosine_similarity(-step.flatten(), (u @ v).flatten(), dim=0)) > 0.97


def test_how_a_convolution_lies_in_memory_does_not_matter():
    steps = []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(16, 32, 3).to(memory_format=form)
        optimizer = optimizer_of(model, config())
        stepped(model, optimizer)
        steps.append(stepped(model, optimizer, seed=1)["weight"])
    # the iteration is in bf16: its rounding depends on the order of the columns, nothing else does
    assert torch.allclose(steps[0], steps[1], atol=0.05 * float(steps[0].abs().max()))


def test_vectors_tables_and_the_layers_on_pixels_are_adamws():
    torch.manual_seed(0)
    net = UNet(3, 16, classes=20, width=16, multipliers=(1, 2), depths=(1, 1), attention=(8,))
    moved = stepped(net, optimizer_of(net, config(weight_decay=0.1)))
    torch.manual_seed(0)
    same = UNet(3, 16, classes=20, width=16, multipliers=(1, 2), depths=(1, 1), attention=(8,))
    adam = stepped(same, optimizer_of(same, config(optimizer="adamw", weight_decay=0.1)))
    for name in ("stem.weight", "head.2.weight", "stem.bias", "embedding.label.weight", "encoder.0.0.norm1.weight"):
        assert torch.equal(moved[name], adam[name]), name
    for name in ("encoder.0.0.conv1.weight", "embedding.second.weight", "decoder.0.0.attention.qkv.weight"):
        assert not torch.allclose(moved[name], adam[name], rtol=0.1), name


def test_weights_decay_by_both():
    model = nn.ModuleDict({"large": nn.Linear(32, 32, bias=False), "small": nn.Linear(32, 2, bias=False)})
    optimizer = optimizer_of(model, config(weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (1 - 0.01 * 0.5), atol=1e-7), name


def test_no_gradient_is_no_step():
    model = nn.ModuleDict({"used": nn.Linear(32, 32), "unused": nn.Linear(32, 32)})
    optimizer = optimizer_of(model, config(weight_decay=0.5))
    before = model["unused"].weight.detach().clone()
    model["used"].weight.grad = torch.ones(32, 32)
    optimizer.step()
    assert torch.equal(model["unused"].weight, before)


def test_it_is_torchs_muon():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(48, 32, bias=False), nn.Linear(48, 32, bias=False)
    theirs.load_state_dict(ours.state_dict())
    other = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = optimizer_of(ours, config(weight_decay=0.1, precision="bf16"))
    for seed in range(3):
        a, b = stepped(ours, optimizer, seed)["weight"], stepped(theirs, other, seed)["weight"]
        assert float((a - b).abs().max()) < 1e-4 * float(b.abs().max())


def test_in_float32_a_change_in_the_last_bit_stays_small():
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    nearly = x * (1 + 1e-7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    a, b = orthogonal(x, torch.float32), orthogonal(nearly, torch.float32)
    assert float((a - b).abs().max()) < 1e-5 * float(a.abs().max())


def test_unknown_optimizer():
    with pytest.raises(UserError, match=r"sgd.*known: muon, adamw"):
        config(optimizer="sgd")
