"""The one-file layout of Stable Diffusion 1, as its authors and kohya write it: names of tensors, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def write_one_file(pipe: Any, file: Path) -> Path:
    """The weights of a StableDiffusionPipeline in one file."""
    unet = {_of_unet(name, pipe.unet): value for name, value in pipe.unet.state_dict().items()}
    vae = dict(_of_vae(name, value, pipe.vae) for name, value in pipe.vae.state_dict().items())
    text = {name.removeprefix("text_model."): value for name, value in pipe.text_encoder.state_dict().items()}
    content = {f"model.diffusion_model.{name}": value for name, value in unet.items()}
    content |= {f"first_stage_model.{name}": value for name, value in vae.items()}
    content |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}
    save_file({name: value.contiguous() for name, value in content.items()}, file)
    assert len(load_file(file)) == len(unet) + len(vae) + len(text)
    return file


def _of_unet(name: str, unet: Any) -> str:
    part, _, last = name.rpartition(".")
    if part in _TOP:
        return f"{_TOP[part]}.{last}"
    layers = unet.config.layers_per_block
    found = re.fullmatch(
        r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
    )
    assert found, name
    where, kind, rest = found[1], found[3], found[5]
    block, layer = int(found[2] or 0), int(found[4])
    if kind == "resnets":
        for own, theirs in _RESNET:
            rest = re.sub(rf"^{own}\.", f"{theirs}.", rest)
    if where == "mid":
        return f"middle_block.{2 * layer if kind == 'resnets' else 2 * layer + 1}.{rest}"
    second = int(kind == "attentions")
    if where == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + block * (layers + 1) + layer}.{second}.{rest}"
    if kind == "upsamplers":
        place = 2 if getattr(unet.up_blocks[block], "attentions", None) else 1
        return f"output_blocks.{(block + 1) * (layers + 1) - 1}.{place}.{rest}"
    return f"output_blocks.{block * (layers + 1) + layer}.{second}.{rest}"


def _of_vae(name: str, value: Tensor, vae: Any) -> tuple[str, Tensor]:
    blocks = len(vae.config.block_out_channels)
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)
    name = (
        name.replace("down_blocks.", "down.")
        .replace("conv_norm_out", "norm_out")
        .replace("conv_shortcut", "nin_shortcut")
    )
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace(".resnets.", ".block.")
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        name = re.sub(r"to_([qkv])\.", r"\1.", name).replace("to_out.0", "proj_out")
        value = value[:, :, None, None] if value.ndim == 2 else value  # linear layers are convolutions there
    return name, value
