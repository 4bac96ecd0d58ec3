"""Names of layers in LoRA files: kohya's, in which dots are underscores, and diffusers', dotted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

__all__ = ["dotted", "flat", "known_names"]

# Names of modules that have underscores themselves, of the networks of diffusers and transformers.
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks", "temp_attentions",
    "motion_modules", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding",
    "linear_1", "linear_2", "to_q", "to_k", "to_v", "to_out", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj",
    "proj_in", "proj_out", "proj_mlp", "ff_context", "norm_out", "context_embedder", "x_embedder", "pos_embed",
    "caption_projection", "adaln_single", "time_text_embed", "timestep_embedder", "text_embedder", "text_model",
    "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection", "class_embedding",
)  # fmt: skip
_TEXT = {
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lora_te": "text_encoder",
}
_UNET = re.compile(r"^(down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding)\b")
_OLD = re.compile(r"\.processor\.(to_[a-z]+)$")
_SGM = re.compile(r"^(input_blocks|middle_block|output_blocks)_(\d+)(?:_(\d+))?_(.*)$")
_SGM_RESNET = {
    "in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}  # fmt: skip


def flat(name: str) -> str:
    """A dotted name as kohya writes it."""
    return name.replace(".", "_")


def known_names(parts: nn.Module) -> dict[str, str]:
    """The names of the layers of a model, by their flat ones."""
    return {flat(name): name for name, _ in parts.named_modules()}


def dotted(name: str, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """A layer's name in a file as component and dotted name, "unet.mid_block.attentions.0.proj_in".

    Args:
        known: `known_names` of the model: a name that is one of its layers', in any spelling, is that one.
    """
    component, layer = _component(name)
    spellings = [layer, _from_sgm(layer), layer.removeprefix("text_model_").removeprefix("text_model.")]
    for candidate in (component,) if component else ("unet", "transformer"):
        for spelling in spellings:
            found = known.get(flat(f"{candidate}.{spelling}"))
            if found is not None:
                return found
    if name.startswith("lora_"):
        layer = _unflattened(_from_sgm(layer))
    return f"{component or ('unet' if _UNET.match(layer) else 'transformer')}.{layer}"


def _component(name: str) -> tuple[str, str]:
    """The component that a name in a file begins with, "" if it does not say, and the rest."""
    for prefix, component in _TEXT.items():
        if name.startswith(prefix + "_"):
            return component, name.removeprefix(prefix + "_")
    for prefix in ("lora_unet_", "lora_transformer_", "diffusion_model.", "base_model.model."):
        if name.startswith(prefix):
            return "", name.removeprefix(prefix)
    old = _OLD.search(name)
    if old:  # attention processors held their own layers
        last = "to_out.0" if old[1] == "to_out" else old[1]
        name = f"{name[: old.start()]}.{last}"
    component, _, layer = name.partition(".")
    if component in ("unet", "transformer", "prior") or component.startswith("text_encoder"):
        return component, layer
    return "", name


def _unflattened(name: str) -> str:
    """Underscores as dots, but for those within the words of diffusers and transformers."""
    words = "|".join(sorted(_WORDS, key=len, reverse=True))
    parts, rest = [], name
    while rest:
        found = re.match(rf"(?:{words})(?=_|$)", rest) or re.match(r"[^_]+", rest)
        if found is None:
            rest = rest[1:]
            continue
        parts.append(found[0])
        rest = rest[found.end() :].removeprefix("_")
    return ".".join(parts)


def _from_sgm(name: str) -> str:
    """SDXL's names of its authors' code as diffusers': three layers a level, of two residual blocks."""
    found = _SGM.match(name)
    if found is None:
        return name
    block, number, inner, rest = found[1], int(found[2]), found[3], found[4]
    if block == "middle_block":
        place = "mid_block_" + ("resnets_0", "attentions_0", "resnets_1")[min(number, 2)]
        rest = rest if inner is None else f"{inner}_{rest}"
        kind = "attentions" if number == 1 else "resnets"
    else:
        level, index = divmod(number - 1, 3) if block == "input_blocks" else divmod(number, 3)
        side = "down_blocks" if block == "input_blocks" else "up_blocks"
        kinds = ("resnets", "attentions", "upsamplers")
        kind = "downsamplers" if rest == "op" else kinds[min(int(inner or 0), 2)]
        place = f"{side}_{level}_{kind}_{0 if kind.endswith('samplers') else index}"
        rest = "conv" if rest == "op" else rest
    return f"{place}_{_SGM_RESNET.get(rest, rest) if kind == 'resnets' else rest}"
