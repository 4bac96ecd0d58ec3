"""Pruned folders of diffusers are folders that diffusers opens."""

import pytest
import torch

import ornstein as orn
from ornstein.compress.budget import network_macs
from ornstein.compress.diffusers_unet import prune_unet2d, unet2d_groups
from ornstein.compress.prune import narrowed
from ornstein.interop.diffusers import save_pipeline, wrap
from running import done, ornstein, refused

diffusers = pytest.importorskip("diffusers")


def unet(**options):
    torch.manual_seed(0)
    settings = {
        "sample_size": 16, "block_out_channels": (16, 32, 32), "layers_per_block": 2, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4,
    }  # fmt: skip
    return diffusers.UNet2DModel(**settings | options).eval()


@pytest.mark.parametrize(
    "options", [{}, {"attention_head_dim": None, "resnet_time_scale_shift": "scale_shift"}], ids=["heads", "one"]
)
def test_every_tensor_belongs_to_its_groups(options):
    """The inputs of all groups together are whole axes: all channels kept is the model, and half of them loads."""
    model = unet(**options)
    groups = unet2d_groups(model)
    same = narrowed(groups, model.state_dict(), {g.name: torch.arange(g.size) for g in groups})
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())
    net = wrap(model, diffusers.DDPMScheduler()).net
    inner, macs, full = prune_unet2d(model, 0.5, (3, 16, 16), None, torch.Generator())
    small = wrap(inner, diffusers.DDPMScheduler()).net
    assert macs == network_macs(small, (3, 16, 16)) and full == network_macs(net, (3, 16, 16))
    assert macs / full == pytest.approx(0.5, rel=0.03)
    assert small(torch.randn(2, 3, 16, 16), torch.zeros(2)).isfinite().all()


def conditional(**options):
    torch.manual_seed(0)
    settings = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64, 64),
        "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 24, "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**settings | options).eval()


XL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64,
    "use_linear_projection": True, "transformer_layers_per_block": 2, "attention_head_dim": (2, 4, 4),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, XL, {"in_channels": 9}], ids=["sd", "xl", "inpaint"])
def test_the_u_net_of_stable_diffusion_keeps_its_heads_and_its_text(options):
    model = conditional(**options)
    groups = unet2d_groups(model)
    same = narrowed(groups, model.state_dict(), {g.name: torch.arange(g.size) for g in groups})
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())
    values = {name: p.detach() for name, p in model.named_parameters()}
    small, macs, full = prune_unet2d(model, 0.5, (4, 16, 16), values, torch.Generator())
    assert macs / full == pytest.approx(0.5, rel=0.03)
    attentions = {n: m for n, m in small.named_modules() if n.endswith("attn2")}
    assert all(m.heads == model.get_submodule(n).heads and m.to_k.in_features == 24 for n, m in attentions.items())
    given = (
        {"added_cond_kwargs": {"text_embeds": torch.ones(1, 16), "time_ids": torch.ones(1, 6)}} if options == XL else {}
    )
    x, text = torch.randn(1, options.get("in_channels", 4), 16, 16), torch.randn(1, 5, 24)
    with torch.no_grad():
        made = [small(x, torch.tensor([300]), each, **given).sample for each in (text, -text)]
    assert made[0].shape == (1, 4, 16, 16) and made[0].isfinite().all() and not torch.equal(*made)


def test_a_folder_becomes_a_folder_that_diffusers_opens(tmp_path):
    save_pipeline(wrap(unet(), diffusers.DDPMScheduler()), tmp_path / "ddpm")
    done("compress", tmp_path / "ddpm", "--steps", 0, "--out", tmp_path / "small")
    opened = diffusers.DDIMPipeline.from_pretrained(tmp_path / "small")
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([300])
    assert opened.unet.config.block_out_channels[0] < 16
    with torch.no_grad():
        theirs = opened.unet(x, t).sample
        ours = orn.load(tmp_path / "small").net.model(x, t).sample
    torch.testing.assert_close(ours, theirs)


def test_what_is_not_compressed_is_said(tmp_path):
    save_pipeline(wrap(unet(), diffusers.DDPMScheduler()), tmp_path / "ddpm")
    new = ("--out", tmp_path / "x")
    refused(ornstein("compress", tmp_path / "ddpm", *new), "knows no data", "--steps 0")
    refused(ornstein("compress", tmp_path / "ddpm", "--macs", 0.001, "--steps", 0, *new), "cannot be met", "least")
