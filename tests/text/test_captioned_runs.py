"""A run on captions: what is trained and stored, prompts for its samples, both kinds of encoder, and bad input."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.data import save_gif
from ornstein.data.captions import Captions
from ornstein.errors import UserError
from ornstein.text import BPE, FrozenEncoder, TextDenoiser, TextEncoder
from ornstein.text.bpe import learned_merges
from ornstein.training.captions import tabled
from running import done, ornstein, refused, torchrun
from text.captioned import SETTINGS, changed


def opened(run: Path) -> TextDenoiser:
    model = orn.load(run)
    assert isinstance(model, TextDenoiser)
    return model


def samples(model: orn.Denoiser, **how: Any) -> torch.Tensor:
    assert model.data is not None
    return orn.sample(model, (2, *model.data.shape), steps=2, **how)


def clip_folder(folder: Path, seed: int = 0) -> Path:
    pytest.importorskip("transformers")
    from interop.tiny import clip_text, clip_tokenizer

    torch.manual_seed(seed)
    clip_text(max_position_embeddings=20).save_pretrained(folder)
    clip_tokenizer(20).save_pretrained(folder)
    return folder


def test_the_encoder_is_a_part_of_the_run(run: Path) -> None:
    stored = load_file(run / "model.safetensors")
    model = opened(run)
    assert isinstance(model.encoder, TextEncoder)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(stored[f"text.{name}"], value)
    config = json.loads((run / "config.json").read_text())
    assert config["text"]["kind"] == "own" and config["text"]["examples"]
    text, mask = model.encoder.encode(["a red picture", ""])
    assert mask.sum(1).tolist() == [5, 0] and text.shape == (2, 5, model.encoder.width)
    assert torch.isfinite(text).all()


def test_training_reads_the_captions(run: Path) -> None:
    """Gradients reach the words of the captions, through the network, and no others."""
    model = opened(run).train()
    assert isinstance(model.encoder, TextEncoder)
    with torch.no_grad():
        model.net.get_parameter("head.2.weight").normal_()  # it starts at zero, and lets no gradient through
    tokens, _ = model.encoder.tokenized(["a red picture", ""])
    x0, t = torch.rand(2, 3, 8, 8), torch.tensor([0.4, 0.6])
    model.loss(x0, t, torch.randn_like(x0), tokens=tokens).sum().backward()
    gradient = model.encoder.tokens.weight.grad
    assert gradient is not None
    moved = set(gradient.abs().sum(1).nonzero().flatten().tolist())
    assert moved == set(tokens[tokens >= 0].tolist())


def test_a_killed_run_ends_in_the_same_bits(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "resumed"
    with pytest.MonkeyPatch.context() as patch:
        from ornstein.training import loop

        steps = loop._Run.take_step
        patch.setattr(loop._Run, "take_step", lambda self, *a: _fails(steps, self, *a))
        with pytest.raises(ZeroDivisionError):
            orn.train(pictures, out, **SETTINGS)
    orn.train(None, out, resume=True, report=False, device="cpu")
    one, other = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def _fails(steps: object, self: object, *arguments: object) -> object:
    if self.step == 2:  # pyright: ignore[reportAttributeAccessIssue]
        raise ZeroDivisionError
    return steps(self, *arguments)  # pyright: ignore[reportCallIssue]


def test_prompts_negative_and_guidance(run: Path) -> None:
    model = opened(run)
    with torch.no_grad():  # an untrained network returns 0
        torch.manual_seed(0)
        for parameter in model.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    red, blue = model.encode(["a red picture"] * 2), model.encode(["a blue picture"] * 2)
    assert "negative" not in red
    plain, other, nothing = (samples(model, cond=cond) for cond in (red, blue, {}))
    assert not torch.equal(plain, other) and not torch.equal(plain, nothing)
    # the empty prompt is no prompt
    assert torch.allclose(samples(model, cond=model.encode(["", ""])), nothing, atol=1e-4)
    exact = copy.deepcopy(model).double()  # in float32 the order of sums may differ
    empty = {k: v.double() if v.is_floating_point() else v for k, v in exact.encode(["", ""]).items()}
    with torch.no_grad():
        y = torch.randn(2, *model.data.shape, dtype=torch.float64)  # pyright: ignore[reportOptionalMemberAccess]
        torch.testing.assert_close(exact(y, 0.5, **empty).x0, exact(y, 0.5).x0, rtol=0, atol=1e-12)
    # guidance by definition: x0 = u + scale (c - u), u with the negative prompt
    x, t = torch.randn(2, *model.data.shape), 0.5  # pyright: ignore[reportOptionalMemberAccess]
    with torch.no_grad():
        c, u = model(x, t, **red).x0, model(x, t, **blue).x0
        cond = model.encode(["a red picture"] * 2, negative="a blue picture")
        guided = orn.guidance.ClassifierFree(model, 3.0)(x, t, **cond).x0
    assert torch.allclose(guided, u + 3 * (c - u), atol=1e-5)
    # prompts as classes are the same model
    prompted = model.prompted(["a red picture", "blue"], negative="green")
    assert prompted.data is not None and prompted.data.classes == ("a red picture", "blue")
    by_label = samples(prompted, cond={"label": torch.tensor([0, 0])})
    assert torch.allclose(by_label, plain, atol=1e-4)
    assert torch.allclose(samples(prompted), samples(model, cond=model.encode(["green"] * 2)), atol=1e-4)


def test_a_frozen_encoder_is_cached_and_checked(pictures: Path, tmp_path: Path) -> None:
    folder, out = clip_folder(tmp_path / "clip"), tmp_path / "run"
    orn.train(pictures, out, **changed(text_encoder=f"clip:{folder}"))
    stored = load_file(out / "model.safetensors")
    assert not any(name.startswith("text.tokens") for name in stored)  # it is not a part of the run
    states = out / "captions" / "states.npy"
    before = states.stat().st_mtime_ns
    orn.train(None, out, resume=True, report=False, device="cpu", steps=6)
    assert states.stat().st_mtime_ns == before
    model = opened(out)
    assert isinstance(model.encoder, FrozenEncoder)
    with pytest.warns(UserWarning, match="cut to 20 tokens"):
        cond = model.encode(["red", "a text of very many letters, each of them a token"])
    assert cond["text_mask"].sum(1).tolist() == [5, 20]
    clip_folder(folder, seed=1)
    with pytest.raises(UserError, match="has changed since"):
        orn.load(out)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no text encoder"):
        orn.load(out)


def test_states_are_those_of_the_encoder(tmp_path: Path) -> None:
    encoder = FrozenEncoder("clip", clip_folder(tmp_path / "clip"))
    captions = Captions([("a", "b c"), ("",), (), ("b c",)], "here")
    table, line = tabled(captions, encoder, tmp_path / "run", torch.device("cpu"))
    assert line == "2 different captions, 4 tokens at most"
    rows, half = torch.arange(4), torch.full((4,), 0.7)
    cond = table.conditions(rows, half, torch.zeros(4, dtype=torch.bool))
    text, _ = encoder.encode(["b c"])
    assert cond["text_mask"].tolist() == [[True] * 4, [False] * 4, [False] * 4, [True] * 4]
    assert torch.allclose(cond["text"][0], text[0], atol=1e-5) and torch.allclose(cond["text"][3], text[0], atol=1e-5)
    first = table.conditions(rows[:1], torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    assert torch.allclose(first["text"][0, :3], encoder.encode(["a"])[0][0], atol=1e-5)
    dropped = table.conditions(rows, half, torch.ones(4, dtype=torch.bool))
    assert not dropped["text_mask"].any()


def test_each_caption_of_a_picture_is_chosen_alike(tmp_path: Path) -> None:
    texts = ["one", "two", "three"]
    encoder = TextEncoder.over(texts, BPE(learned_merges(texts)), width=8, layers=1, heads=2, length=3)
    captions = Captions([tuple(texts), (), ("one two three four",)], "here")
    table, line = tabled(captions, encoder, tmp_path, torch.device("cpu"))
    assert "1 cut to the 3 that are read" in line
    chosen, kept = torch.arange(9) / 9, torch.zeros(9, dtype=torch.bool)
    tokens = table.conditions(torch.zeros(9, dtype=torch.long), chosen, kept)["tokens"]
    expected = encoder.tokenized([text for text in texts for _ in range(3)])[0]
    assert torch.equal(tokens, expected)
    assert (table.conditions(torch.ones(9, dtype=torch.long), chosen, kept)["tokens"] == -1).all()


def t5_folder(folder: Path) -> Path:
    pytest.importorskip("transformers")
    from interop.tiny import t5

    model, tokenizer = t5()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "t5", "minilm"])
def test_every_frozen_encoder_from_the_command_line(pictures: Path, tmp_path: Path, kind: str) -> None:
    """Training, more of it, and samples that follow the prompt; the encoder is no part of what is learned."""
    encoder = kind
    if kind == "minilm":
        pytest.importorskip("transformers")
        pytest.importorskip("all_minilm_l6_v2")
    else:
        encoder = f"{kind}:{(clip_folder if kind == 'clip' else t5_folder)(tmp_path / kind)}"
    out = tmp_path / "run"
    train = ("train", "--out", out, "--device", "cpu", "--no-report")
    fast = ("--size", 8, "--net", "xs", "--batch", 4, "--warmup", 1, "--checkpoint-every", 2)
    done(*train, "--data", pictures, "--captions", "auto", "--text-encoder", encoder, "--steps", 4, *fast)
    done(*train, "--resume", "--steps", 6)
    model = opened(out)
    assert isinstance(model.encoder, FrozenEncoder) and model.encoder.kind == kind
    weights = load_file(out / "model.safetensors")
    assert not any(name.startswith("text.tokens") for name in weights)
    one, other = (samples(model, cond=model.encode([text] * 2)) for text in ("a red picture", "a blue picture"))
    assert torch.isfinite(one).all() and not torch.equal(one, other)


@pytest.mark.slow
def test_two_processes_learn_from_captions_what_one_does(pictures: Path, tmp_path: Path) -> None:
    settings = ("--size", 8, "--net", "xs", "--batch", 4, "--steps", 3, "--warmup", 1, "--no-report")
    train = ("train", "--data", pictures, "--captions", "auto", "--device", "cpu", "--precision", "float32", *settings)
    done(*train, "--out", tmp_path / "one")
    result = torchrun(*train, "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    runs = [tmp_path / name for name in ("one", "two")]
    losses = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = (load_file(run / "model.safetensors") for run in runs)
    assert one.keys() == two.keys()
    for part in ("net.", "text."):
        apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one if name.startswith(part)])
        # a gradient that is zero but for rounding has a step of either sign
        assert float((apart > 1e-4).float().mean()) < 0.01, part


def test_encoder_folders_that_cannot_be_used(pictures: Path, tmp_path: Path) -> None:
    def train(encoder: str) -> Any:
        return ornstein(
            "train", "--data", pictures, "--captions", "auto", "--text-encoder", encoder, "--out", tmp_path / "r",
            "--size", 8, "--steps", 1, "--net", "xs",
        )  # fmt: skip

    refused(train("bert"), "bert", "minilm", "clip:FOLDER")
    refused(train(f"clip:{tmp_path / 'none'}"), "no folder")
    folder = clip_folder(tmp_path / "clip")
    refused(train(f"t5:{folder}"), "clip", "not t5")
    tokenizers = tmp_path / "bare"
    shutil.copytree(folder, tokenizers)
    for file in tokenizers.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    refused(train(f"clip:{tokenizers}"), "no tokenizer")
    (tokenizers / "model.safetensors").rename(tokenizers / "pytorch_model.bin")
    refused(train(f"clip:{tokenizers}"), "pickle", "save_pretrained")


def test_commands(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    done(
        "sample",
        run,
        "--prompt",
        "a red picture",
        "--negative",
        "blue",
        "--guidance",
        2,
        "-n",
        2,
        "--steps",
        2,
        "--out",
        out,
    )
    assert len(list(out.glob("*.png"))) == 3
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red picture\nall blue\n")
    done("sample", run, "--prompts", prompts, "--steps", 2, "--out", tmp_path / "two")
    assert len(list((tmp_path / "two").glob("0*.png"))) == 2
    refused(ornstein("sample", run, "--out", tmp_path / "no"), "takes text", "--prompt")
    train = ("train", "--data", pictures, "--out", tmp_path / "r", "--size", 8, "--steps", 1)
    refused(ornstein(*train, "--text-encoder", "own"), "--captions")
    refused(ornstein(*train, "--captions", "auto", "--conditional"), "--conditional")
    refused(ornstein(*train, "--captions", "title"), "no captions", "metadata.jsonl", "title")
    refused(ornstein(*train, "--captions", "auto", "--model", "kl"), "--captions is for diffusion")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in pictures.glob("*.png"):
        shutil.copy(file, bare)
    refused(
        ornstein("train", "--data", bare, "--captions", "auto", "--out", tmp_path / "r"), "no captions", ".txt files"
    )


def test_an_unconditional_run_takes_no_prompt(tmp_path: Path, pictures: Path) -> None:
    orn.train(pictures, tmp_path / "plain", **changed(captions=None, steps=1))
    refused(ornstein("sample", tmp_path / "plain", "--prompt", "red"), "without text", "--prompt")


@pytest.mark.parametrize(
    "how",
    [
        {"stream": True},
        {"crop": "random"},
        {"aspect": "buckets"},
        {"net": "dit:xs"},
        {"condition_dropout": 1.0},
        {"captions": "txt", "accumulate": 2, "precision": "bf16"},
    ],
    ids=str,
)
def test_captions_go_with_every_way_of_reading_and_training(
    pictures: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    orn.train(pictures, tmp_path / "run", **changed(steps=2, **how))
    model = opened(tmp_path / "run")
    cond = model.encode(["a red picture", "all blue"], negative="")
    assert torch.isfinite(samples(model, cond=cond, guidance=2.0)).all()


def test_captions_go_with_latents(pictures: Path, tmp_path: Path) -> None:
    orn.train(pictures, tmp_path / "ae", **changed(captions=None, steps=1, size=16, model="kl", factor=2))
    settings = changed(steps=2, latent=str(tmp_path / "ae"))
    orn.train(pictures, tmp_path / "latent", **{k: v for k, v in settings.items() if k != "size"})
    model = opened(tmp_path / "latent")
    y = samples(model, cond=model.encode(["a red picture"] * 2))
    assert model.decode(y).shape == (2, 3, 16, 16)


def test_the_report_and_previews_are_made_with_captions(pictures: Path, tmp_path: Path) -> None:
    orn.train(pictures, tmp_path / "run", **changed(steps=2, sample_every=2, report=True, held_out=0.4))
    assert (tmp_path / "run" / "report.html").is_file()
    assert list((tmp_path / "run" / "progress").glob("*.png"))
    assert "report.html" in done("evaluate", tmp_path / "run", "-n", 8, "--steps", 2, "--seeds", 1, "--images", 1)
    assert "captions" in done("info", tmp_path / "run")


def test_captions_of_clips(tmp_path: Path) -> None:
    """A video's caption is that of each clip cut from it; its prompt makes clips, from noise and from given frames."""
    draw, films = torch.Generator().manual_seed(0), tmp_path / "films"
    films.mkdir()
    for i, word in enumerate(("red", "blue", "green", "red")):
        clip = torch.rand(3, 7, 16, 16, generator=draw) * 0.2 - 1
        clip[i % 3] += 1.5
        save_gif(clip, films / f"{i}.gif", 8.0)
        (films / f"{i}.txt").write_text(f"a {word} film")
    run = tmp_path / "run"
    said = done(
        "train", "--data", films, "--frames", 3, "--given-frames", "--captions", "auto", "--size", 16, "--net", "xs",
        "--batch", 4, "--steps", 2, "--sample-every", 0, "--no-report", "--out", run,
    )  # fmt: skip
    assert "captions of" in said and "3 different captions" in said
    model = opened(run)
    assert model.data is not None and model.data.shape == (3, 3, 16, 16)
    for given in ((), ("--given", films, "--first", 1)):
        out = tmp_path / f"samples{len(given)}"
        made = ("--prompt", "a red film", "-n", 2, "--steps", 2, "--out", out)
        done("sample", run, *made, *given)
        assert len(list(out.glob("*.gif"))) == 2
    refused(
        ornstein("train", "--data", films, "--frames", 3, "--captions", "auto", "--noise", "warped:0.25", "--out",
                 tmp_path / "no"), "--captions with --noise warped",
    )  # fmt: skip
