"""The one-file layouts of Stable Diffusion 1 and XL, as their authors and kohya write them: names of tensors alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def write_one_file(pipe: Any, file: Path) -> Path:
    """The weights of a StableDiffusionPipeline or a StableDiffusionXLPipeline in one file."""
    unet = {_of_unet(name, pipe.unet): value for name, value in pipe.unet.state_dict().items()}
    vae = dict(_of_vae(name, value, pipe.vae) for name, value in pipe.vae.state_dict().items())
    text = {name.removeprefix("text_model."): value for name, value in pipe.text_encoder.state_dict().items()}
    second = getattr(pipe, "text_encoder_2", None)
    first = "cond_stage_model" if second is None else "conditioner.embedders.0"
    parts = [("model.diffusion_model", unet), ("first_stage_model", vae), (f"{first}.transformer.text_model", text)]
    if second is not None:
        parts.append(("conditioner.embedders.1.model", _of_open_clip(second)))
    content = {f"{part}.{name}": value.contiguous() for part, values in parts for name, value in values.items()}
    save_file(content, file)
    assert len(load_file(file)) == sum(len(values) for _, values in parts)
    return file


_OPEN_CLIP = (
    ("text_model.", ""), ("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.token_embedding", "token_embedding"), ("final_layer_norm", "ln_final"),
)  # fmt: skip


def _of_open_clip(encoder: Any) -> dict[str, Tensor]:
    """CLIP's text encoder in the names of OpenCLIP, with query, key and value in one matrix."""
    state = encoder.state_dict()
    named = {"text_projection": state.pop("text_projection.weight").T}
    for name in [name for name in state if ".q_proj." in name]:
        thirds = [state.pop(name.replace("q_proj", each)) for each in ("q_proj", "k_proj", "v_proj")]
        state[name.replace("q_proj.", "in_proj_")] = torch.cat(thirds)
    for name, value in state.items():
        for own, theirs in _OPEN_CLIP:
            name = name.replace(own, theirs)
        named[name] = value
    return named


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
