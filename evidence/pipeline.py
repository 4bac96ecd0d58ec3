# pyright: reportPrivateImportUsage=false
"""A text-to-image pipeline of our own as a folder of diffusers: trained, opened by both libraries, and tuned.

    python evidence/pipeline.py train FOLDER     # autoencoder, network and text encoder, on `shapes`
    python evidence/pipeline.py same FOLDER      # the same prompts and noise: diffusers' pictures and ours
    python evidence/pipeline.py tune FOLDER [4]  # `ornstein tune` beside diffusers' schedulers [at this guidance]

All parts are classes of diffusers and transformers: AutoencoderKL, UNet2DConditionModel, CLIPTextModel and CLIP's
tokenizer with the part of its merges that the captions use. They are trained here by the objective of `ornstein train`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, cast

import diffusers as typed_diffusers
import torch
import transformers as typed_transformers
from torch import Tensor
from torch.nn import functional as F

import ornstein as orn
from ornstein.data import to_uint8, to_unit
from ornstein.data.order import batch_indices
from ornstein.data.shapes import judge, parse, render, scenes
from ornstein.few_steps.tuning import fine, trajectories, tune
from ornstein.guidance import ClassifierFree
from ornstein.interop.notes import quiet
from ornstein.interop.pipeline import Pipeline
from ornstein.randomness import generator
from ornstein.store import atomic_write
from ornstein.text import BPE
from ornstein.text.bpe import clip_merges
from ornstein.training.config import TrainConfig
from ornstein.training.optimizer import optimizer_of
from ornstein.wrapper import Conditioned

# their types are stricter than what they take
diffusers, transformers = cast(Any, typed_diffusers), cast(Any, typed_transformers)
SIZE, LENGTH, COUNT, BATCH = 32, 24, 12_000, 32
AUTOENCODER_STEPS, STEPS, DROPOUT = 1500, 5000, 0.1
COUNTS, SCALES = (5, 8, 10), (1.0, 4.0, 7.5)
TRAJECTORIES, PART, ITERATIONS, COMPARED = 32, 16, 18, 32
SCHEDULERS = (
    "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
    "DEISMultistepScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "IPNDMScheduler",
)  # fmt: skip
SPACINGS = ("leading", "linspace", "trailing")


def untrained(captions: list[str]) -> Any:
    """The pipeline with random weights."""
    merges = clip_merges()
    assert merges is not None, "pip install --no-deps open_clip_torch"
    bpe = BPE(merges).restricted(captions)
    vocabulary = bpe.vocabulary
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=list(bpe.merges), model_max_length=LENGTH)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=96, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=96, bos_token_id=bpe.start,
            eos_token_id=bpe.end, pad_token_id=bpe.end,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(16, 32, 64), norm_num_groups=8,
        latent_channels=4, layers_per_block=1, sample_size=SIZE, mid_block_add_attention=False,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIZE // 4, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, cross_attention_dim=96, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, None, False)


def steps_of(modules: torch.nn.Module, steps: int, optimizer: str, rate: float) -> Any:
    """The steps of a training of so many steps: gives the number of each, and then moves the weights."""
    config = TrainConfig(steps=steps, batch=BATCH, optimizer=optimizer, learning_rate=rate)  # pyright: ignore
    update = optimizer_of(modules, config)
    began = time.process_time()
    for step in range(steps):
        for group in update.param_groups:
            group["lr"] = config.learning_rate_at(step, step / steps)
        yield step
        torch.nn.utils.clip_grad_norm_(modules.parameters(), config.clip)
        update.step()
        update.zero_grad()
        if step % 250 == 0:
            print(f"step {step} of {steps}, {time.process_time() - began:.0f} s of processor time", flush=True)


def train_autoencoder(vae: Any, pictures: Tensor) -> None:
    """L1 and a small KL; then the scaling factor that gives the latents unit variance."""
    for step in steps_of(vae, AUTOENCODER_STEPS, "adamw", 1e-3):
        x = to_unit(pictures[batch_indices(len(pictures), BATCH, step, 0)])
        q = vae.encode(x).latent_dist
        draw = torch.randn(q.mean.shape, generator=generator(0, "autoencoder", step))
        back = vae.decode(q.mean + q.std * draw).sample
        loss = F.l1_loss(back.float(), x) + 1e-4 * q.kl().mean() / q.mean[0].numel()
        if step % 250 == 0:
            print(f"loss {float(loss.detach()):.4f}", flush=True)
        loss.backward()
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(to_unit(pictures[:1024])).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / latents.std()))


def train(folder: Path) -> None:
    """Train the parts, and write the folder. An autoencoder that is there already is kept."""
    torch.manual_seed(0)
    given = scenes(COUNT)
    pictures, captions = render(given, SIZE), [scene.captions for scene in given]
    pipe = untrained([text for texts in captions for text in texts])
    kept = folder.with_name(f"{folder.name}.autoencoder")
    if not kept.is_dir():
        train_autoencoder(pipe.vae, pictures)
        pipe.vae.save_pretrained(kept)
    pipe.vae = diffusers.AutoencoderKL.from_pretrained(kept).eval().requires_grad_(False)
    with quiet():
        pipe.save_pretrained(folder)
        model = orn.load(folder)
    assert isinstance(model, Pipeline) and model.space is not None
    space: Any = model.space
    with torch.no_grad():
        both = [torch.stack(space.encode(to_unit(part)), 1) for part in pictures.split(500)]
    mean, std = torch.cat(both).unbind(1)
    own: Any = model._pipe

    def read(texts: list[str]) -> Tensor:
        length = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
        return own.tokenizer(texts, return_tensors="pt", **length).input_ids

    tokens = [[read([text])[0] for text in texts] for texts in captions]
    nothing = read([""])[0]
    modules = torch.nn.ModuleDict({"net": own.unet, "text": own.text_encoder})
    modules.train()
    for step in steps_of(modules, STEPS, "muon", 4e-3):
        draw = generator(0, "pipeline", step)
        rows = batch_indices(COUNT, BATCH, step, 0)
        u = torch.rand(2, BATCH, generator=draw)
        chosen = [
            nothing if float(u[0, i]) < DROPOUT else tokens[row][int(u[1, i] * len(tokens[row]))]
            for i, row in enumerate(rows.tolist())
        ]
        x0 = mean[rows] + std[rows] * torch.randn(mean[rows].shape, generator=draw)
        t = (torch.arange(BATCH) + torch.rand(BATCH, generator=draw)) / BATCH
        z = torch.randn(x0.shape, generator=draw)
        text = own.text_encoder(torch.stack(chosen))[0]
        loss = model.loss(x0, t.clamp(min=1e-3), z, text=text).mean()
        if step % 250 == 0:
            print(f"loss {float(loss.detach()):.4f}", flush=True)
        loss.backward()
    modules.eval()
    with quiet():
        own.save_pretrained(folder)


def opened(folder: Path) -> Pipeline:
    model = orn.load(folder)
    assert isinstance(model, Pipeline)
    return model


def same(folder: Path) -> None:
    """How far the pictures of both libraries are apart, and what they show."""
    model, count = opened(folder), 64
    asked = scenes(count, seed=1, unseen=True)
    prompts = [scene.captions[0] for scene in asked]
    with quiet():
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(count, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
    for guidance in SCALES:
        call: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": guidance, "output_type": "pt"}
        theirs = pipe(prompt=prompts, latents=x.clone(), **call).images
        cond = model.encode(prompts)
        y = orn.sample(model, x.shape, "ddim", grid=model.times(20), start=x, cond=cond, guidance=guidance)
        ours = (model.decode(y) / 2 + 0.5).clamp(0, 1)
        verdicts = [judge(s, found) for s, found in zip(asked, parse(to_uint8(2 * ours - 1)), strict=True)]
        right = [sum(getattr(v, n)[0] for v in verdicts) / sum(getattr(v, n)[1] for v in verdicts)
                 for n in ("attributes", "relations")]  # fmt: skip
        apart = float((theirs - ours).abs().max())
        print(f"guidance {guidance:g}: pictures differ by at most {apart:.1e} of 1; unseen combinations: attributes "
              f"{right[0]:.1%}, relations {right[1]:.1%}", flush=True)  # fmt: skip


def their_ends(pipe: Any, scheduler: Any, cond: dict[str, Any], x: Tensor, steps: int, scale: float) -> Tensor:
    """The ends of a scheduler of diffusers, by the loop of its own pipeline."""
    pipe.scheduler = scheduler
    with torch.no_grad():
        return pipe(
            prompt_embeds=cond["text"], negative_prompt_embeds=cond["negative"]["text"], latents=x.clone(),
            num_inference_steps=steps, guidance_scale=scale, output_type="latent",
        ).images  # fmt: skip


def schedulers(config: Any, steps: int) -> dict[str, Any]:
    """Every scheduler with every spacing of its steps that makes so many evaluations."""
    found: dict[str, Any] = {}
    for name in SCHEDULERS:
        kind = getattr(diffusers, name)
        for spacing in SPACINGS:
            try:
                made = kind.from_config(config, timestep_spacing=spacing)
                made.set_timesteps(steps)
            except Exception:  # a scheduler may refuse a spacing
                continue
            if len(made.timesteps) == steps:
                found[f"{name.removesuffix('Scheduler')}, {spacing}"] = made
    return found


def compare(folder: Path, scales: tuple[float, ...] = SCALES) -> None:
    """End-point errors of tuned solvers and of diffusers' schedulers on the same starts and unseen prompts.

    The root mean square over all samples, and the median of those of each: a few samples, whose path divides between
    two pictures, decide the first. What more evaluations would bring is the error of the same scheduler with twice as
    many. Results are kept beside the folder, and not measured again.
    """
    file = folder.with_name(f"{folder.name}.tuned.json")
    kept: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    model = opened(folder)
    seen = [scene.captions[0] for scene in scenes(TRAJECTORIES, seed=2)]
    asked = [scene.captions[0] for scene in scenes(COMPARED, seed=3)]
    with quiet():
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    assert model.data is not None
    x = torch.randn(COMPARED, *model.data.shape, generator=torch.Generator().manual_seed(1))
    cond = model.encode(asked)
    for scale in scales:
        left = [steps for steps in COUNTS if f"{scale:g}, {steps}" not in kept]
        if left:
            prompted = model.prompted(seen)
            parts = trajectories(prompted, TRAJECTORIES, 0, scale, PART)
            guided = model if scale == 1 else ClassifierFree(model, scale)
            end = fine(Conditioned(guided, cond if scale != 1 else {"text": cond["text"]}), x)
            for steps in left:
                solver = tune(parts, steps, ITERATIONS)
                ours = orn.sample(model, x.shape, solver, start=x, cond=cond, guidance=scale)

                def ends(steps: int, names: Container[str] = (), scale: float = scale) -> dict[str, Tensor]:
                    made = schedulers(config, steps).items()
                    chosen = ((name, each) for name, each in made if not names or name in names)
                    return {name: their_ends(pipe, each, cond, x, steps, scale) for name, each in chosen}

                kept[f"{scale:g}, {steps}"] = compared(ours, ends, end, steps)
                atomic_write(file, json.dumps(kept, indent=1).encode())
                print(f"guidance {scale:g}, {steps}: {kept[f'{scale:g}, {steps}']}", flush=True)
    print("\n".join(f"guidance {key} evaluations: {found}" for key, found in sorted(kept.items())))


def compared(ours: Tensor, ends: Callable[..., dict[str, Tensor]], end: Tensor, steps: int) -> str:
    """Root mean square and median of the errors: tuned, the best of theirs, and that one with twice the evaluations."""

    def error(y: Tensor) -> tuple[float, float]:
        each = (y - end).square().flatten(1).mean(1)
        return float(each.mean().sqrt()), float(each.median().sqrt())

    own, theirs, lines = error(ours), {name: error(y) for name, y in ends(steps).items()}, []
    for i, what in enumerate(("root mean square", "median")):
        best = min(theirs, key=lambda name: theirs[name][i])
        more = [error(y)[i] for y in ends(2 * steps, (best,)).values()]
        lines.append(
            f"{what} {own[i]:.4f}, best of {len(theirs)} of diffusers {theirs[best][i]:.4f} ({best}"
            f"{''.join(f'; {v:.4f} with twice the evaluations' for v in more)}), ratio {own[i] / theirs[best][i]:.2f}"
        )
    return "; ".join(lines)


def main() -> None:
    what, folder, *scales = sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:])
    if scales:
        compare(folder, tuple(scales))
    else:
        {"train": train, "same": same, "tune": compare}[what](folder)


if __name__ == "__main__":
    main()
