"""Tiny pipelines with random weights, one of each family, built from configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,"


def clip_tokenizer(length: int = 77) -> Any:
    """CLIP's tokenizer with single letters for words."""
    words = [*LETTERS, *(c + "</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {w: i for i, w in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def clip_text(projected: bool = False, **options: Any) -> Any:
    count = 2 * len(LETTERS) + 2
    settings = {
        "vocab_size": count, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "projection_dim": 32, "bos_token_id": count - 2, "eos_token_id": count - 1,
        "pad_token_id": 1,
    }  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**settings | options)).eval()


def vae(channels: int = 4, **options: Any) -> Any:
    settings = {
        "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [4, 8], "norm_num_groups": 2,
        "latent_channels": channels, "layers_per_block": 1,
    }  # fmt: skip
    return diffusers.AutoencoderKL(**settings | options).eval()


def unet(**options: Any) -> Any:
    settings = {
        "sample_size": 32, "in_channels": 4, "out_channels": 4, "block_out_channels": (4, 8), "layers_per_block": 1,
        "norm_num_groups": 2, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32, "attention_head_dim": 2,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**settings | options).eval()


def ddim(**options: Any) -> Any:
    settings = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    return diffusers.DDIMScheduler(**settings | options)


def stable_diffusion(**options: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae(), clip_text(), clip_tokenizer(), unet(), ddim(**options), None, None, None, False
    )


def t5(kind: str = "T5", width: int = 32) -> tuple[Any, Any]:
    """A T5 encoder and its tokenizer with single letters for words."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((c, -2.0) for c in LETTERS)]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval(), tokenizer


def sdxl(second: int = 32, **options: Any) -> Any:
    """Of two encoders; the width of the second."""
    settings = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 6 * 8 + second, "cross_attention_dim": 32 + second,
        "use_linear_projection": True,
    }  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    widths = {"hidden_size": second, "projection_dim": second}
    text = [clip_text(hidden_act="gelu"), clip_text(True, hidden_act="gelu", **widths)]
    return diffusers.StableDiffusionXLPipeline(
        vae(), *text, clip_tokenizer(), clip_tokenizer(), unet(**settings), scheduler, **options
    )


def sd3(dynamic: bool = False) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64,
    )  # fmt: skip
    encoder, tokenizer = t5()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0 if dynamic else 3.0, use_dynamic_shifting=dynamic)
    return diffusers.StableDiffusion3Pipeline(
        transformer, scheduler, vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        clip_text(True), clip_tokenizer(), clip_text(True), clip_tokenizer(), encoder, tokenizer,
    )  # fmt: skip


def flux(distilled: bool = False) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=distilled,
    )  # fmt: skip
    encoder, tokenizer = t5()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=distilled)
    return diffusers.FluxPipeline(
        scheduler, vae(shift_factor=0.06, scaling_factor=1.5), clip_text(), clip_tokenizer(), encoder, tokenizer,
        transformer,
    )  # fmt: skip


def pixart() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        caption_channels=32, cross_attention_dim=24, in_channels=4, out_channels=8,
    )  # fmt: skip
    encoder, tokenizer = t5()
    return diffusers.PixArtSigmaPipeline(tokenizer, encoder, vae(), transformer, ddim())


def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=16,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer, vae(), ddim())


def ldm() -> Any:
    bert = LDMBertModel(
        LDMBertConfig(vocab_size=2 * len(LETTERS) + 2, d_model=32, encoder_layers=2, encoder_ffn_dim=37,
                      encoder_attention_heads=4, head_dim=8)
    )  # fmt: skip
    return diffusers.LDMTextToImagePipeline(vae(), bert.eval(), clip_tokenizer(), unet(), ddim())


def animatediff() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(4, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    scheduler = ddim(beta_schedule="linear", steps_offset=1)
    return diffusers.AnimateDiffPipeline(vae(), clip_text(), clip_tokenizer(), unet(sample_size=16), adapter, scheduler)


def wan() -> Any:
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=64, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    encoder, tokenizer = t5("UMT5")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.WanPipeline(tokenizer, encoder, decoder.eval(), scheduler, transformer)


def controlled() -> Any:
    net = unet()
    control = diffusers.ControlNetModel(
        in_channels=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 8),
    )  # fmt: skip
    return diffusers.StableDiffusionControlNetPipeline(
        vae(), clip_text(), clip_tokenizer(), net, control.eval(), ddim(), None, None, None, False
    )


def adapted() -> Any:
    adapter = diffusers.T2IAdapter(in_channels=3, channels=[4, 8], num_res_blocks=1, downscale_factor=2)
    net = unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    return diffusers.StableDiffusionAdapterPipeline(
        vae(), clip_text(), clip_tokenizer(), net, adapter.eval(), ddim(), None, None, False
    )


def inpaint() -> Any:
    return diffusers.StableDiffusionInpaintPipeline(
        vae(), clip_text(), clip_tokenizer(), unet(in_channels=9), ddim(), None, None, None, False
    )


FAMILIES = {
    "adapted": adapted,
    "controlled": controlled,
    "inpaint": inpaint,
    "sd1": stable_diffusion,
    "sd2": lambda: stable_diffusion(prediction_type="v_prediction"),
    "sdxl": sdxl,
    "sdxl-two-widths": lambda: sdxl(64),
    "sdxl-nulls": lambda: sdxl(force_zeros_for_empty_prompt=False),
    "sd3": sd3,
    "sd3-dynamic": lambda: sd3(True),
    "flux": flux,
    "flux-distilled": lambda: flux(True),
    "pixart": pixart,
    "dit": dit,
    "ldm": ldm,
    "animatediff": animatediff,
    "wan": wan,
}


def build(name: str, folder: Path) -> Path:
    """The folder of a tiny pipeline of a family."""
    torch.manual_seed(0)
    pipe = FAMILIES[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            randomise(part)
    pipe.save_pretrained(folder, safe_serialization=True)
    if name == "dit":  # the library reads this and does not write it
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {"0": "cat, felis", "1": "dog"}}))
    return folder


def randomise(module: torch.nn.Module) -> None:
    """Weights that are zero at the start, which would hide what they multiply, get a value."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
