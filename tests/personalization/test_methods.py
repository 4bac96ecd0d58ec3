"""The methods, what keeps the class, masks, captions, buckets and the held-out loss."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.errors import UserError
from ornstein.interop.exchange import export_model
from ornstein.interop.lora import load_lora, merge_lora, parts_of
from ornstein.interop.memory import samples_at_once
from ornstein.interop.words import read_words
from ornstein.nets import UNet
from ornstein.nets.switch import Switch
from ornstein.personalization import task as tasks
from ornstein.personalization.learned import begin
from ornstein.personalization.pictures import Pictures, PictureSet
from ornstein.personalization.recipe import Run
from ornstein.personalization.settings import PersonalizeSettings
from ornstein.personalization.task import Personalisation
from ornstein.text import BPE, TextDenoiser, TextEncoder, open_encoder
from ornstein.text.bpe import learned_merges

PROMPT = "a photo of sks dog"
FAST = {
    "report": False, "checkpoint_every": 50, "sample_every": 0, "learning_rate": 1e-2, "held_out": 0.0, "steps": 2
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def learn(base: Path, photos: Path, out: Path, **settings) -> Run:
    return orn.personalize(base, photos, settings.pop("prompt", PROMPT), out, **FAST | settings)


def image(d, prompt: str = PROMPT) -> torch.Tensor:
    return orn.sample(d, (1, *d.data.shape), steps=3, seed=1, cond=d.encode([prompt]))


def task_of(base: Path, photos: Path, out: Path, **settings) -> Personalisation:
    """The task of a run, before its first step."""
    d = orn.load(base)
    asked = PersonalizeSettings(**{"base": str(base), "images": str(photos), "prompt": PROMPT} | settings)
    pixels = [
        torch.from_numpy(np.asarray(Image.open(f)))[:64, :64].movedim(-1, 0) for f in sorted(photos.glob("*.png"))
    ]
    pictures = Pictures([str(i) for i in range(len(pixels))], pixels, [(PROMPT,)] * len(pixels), [None] * len(pixels))
    learned = begin(d, asked)
    return Personalisation(d, learned, asked, PictureSet(d, pictures, None, 0.0), None, print, {}, out)  # pyright: ignore


def loss_of(task: Personalisation, rows: list[int], step: int = 0) -> torch.Tensor:
    x0, labels = task.pictures.batch(rows)
    return task.loss(x0, labels, torch.Generator().manual_seed(step), 0.0)[0]


def test_a_new_word_is_learned_and_diffusers_loads_it(base, photos, tmp_path):
    prompt = "a photo of <new> dog"
    run = learn(base, photos, tmp_path / "run", method="textual-inversion", prompt=prompt, vectors=2, initial="dog")
    plain, d = orn.load(base), orn.load(run.path)
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), d.net.parameters(), strict=True))
    table = d.pipe.text_encoder.get_input_embeddings()
    rows = table.weight[d.pipe.tokenizer.convert_tokens_to_ids(["<new>", "<new>_1"])]
    assert rows.shape == (2, 32) and not torch.equal(rows[0], rows[1])
    assert torch.equal(read_words(run.path, ["text_encoder"])["<new>"]["text_encoder"], rows)
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None, local_files_only=True)
    pipe.load_textual_inversion(run.path, weight_name="learned_embeds.safetensors")
    theirs = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    assert (theirs - d.encode([prompt])["text"]).abs().max() < 1e-5
    assert (theirs - plain.encode([prompt])["text"]).abs().max() > 1e-2
    export_model(d, tmp_path / "folder")  # an ordinary pipeline that has the word
    assert torch.equal(orn.load(tmp_path / "folder").encode([prompt])["text"], d.encode([prompt])["text"])
    # other words mean what they meant
    assert torch.equal(d.encode(["a cat"])["text"], plain.encode(["a cat"])["text"])


def test_all_weights_are_learned_by_dreambooth(base, photos, tmp_path):
    run = learn(base, photos, tmp_path / "run", method="dreambooth", learning_rate=1e-4, train_text=True)
    d, plain = orn.load(run.path), orn.load(base)
    now, before = dict(parts_of(d).named_parameters()), dict(parts_of(plain).named_parameters())
    moved = [name for name in now if not torch.equal(now[name], before[name])]
    assert any(n.startswith("unet.conv_in") for n in moved) and any(n.startswith("text_encoder.") for n in moved)
    assert torch.equal(image(d), image(run.model))


def test_dora_at_the_start_changes_nothing_and_learns_norms(base, photos, tmp_path):
    task = task_of(base, photos, tmp_path, dora=True)
    assert torch.allclose(image(task.denoiser), image(orn.load(base)), atol=1e-4)
    loss_of(task, [0, 1]).backward()
    norms = [p for name, p in task.model.numbers.items() if name.endswith("magnitude")]
    assert norms and all(p.grad is not None and bool(p.grad.any()) for p in norms)


def test_the_class_is_kept_by_pictures_that_are_made_once(base, photos, tmp_path, capsys):
    given = {"prior": "images", "class_images": 2, "class_folder": tmp_path / "class", "guidance": 1.0}
    learn(base, photos, tmp_path / "one", **given)
    made = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "class").iterdir()}
    (tmp_path / "class" / "00001.png").unlink()
    run = learn(base, photos, tmp_path / "two", **given)
    assert len(made) == 2 and "1 pictures of the class, 1 to make: 'a photo of dog'" in " ".join(
        capsys.readouterr().out.split()
    )
    again = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "class").iterdir()}
    assert {k for k in again if again[k] == made[k]} == {"00000.png"}
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["own"] + lines[-1]["prior"])


def test_the_loss_is_the_sum_of_both_kinds(base, photos, tmp_path):
    """E36: each kind has the mean of its own pictures, and the class the weight lambda."""
    task = task_of(base, photos, tmp_path, prior="images", prior_weight=0.25, time_sampling="uniform")
    d, pictures = task.denoiser, task.pictures
    pictures.own, pictures.prompts[4:] = 4, [("a photo of dog",)] * 2
    rows = pictures.order(4, 0, 0)
    assert (rows < 4).tolist() == [True, False, True, False]
    draw = torch.Generator().manual_seed(3)
    x0, labels = pictures.batch(rows)
    with torch.no_grad():
        total, parts = task.loss(x0, labels, torch.Generator().manual_seed(3), 0.0)
        t = task.times.draw(4, draw)[0]
        torch.rand(4, generator=draw)  # no prompt is dropped
        of_latent, z = (torch.randn(4, *d.data.shape, generator=draw) for _ in range(2))
        y = x0[:, 0] + x0[:, 1] * of_latent
        cond = d.encode([pictures.prompts[i][0] for i in rows.tolist()])
        out = d(d.process.add_noise(y, t, z), t, text=cond["text"]).eps
        each = (out - z).flatten(1).square().mean(1)
    new, kept = each[[0, 2]].mean(), each[[1, 3]].mean()
    assert torch.allclose(parts["own"], new, rtol=1e-4) and torch.allclose(parts["prior"], kept, rtol=1e-4)
    assert torch.allclose(total, new + 0.25 * kept, rtol=1e-4)


def test_the_distilled_prior_is_the_drift_at_pictures_of_the_class(base, photos, tmp_path):
    """E36: what is new has its plain loss; the class the squared distance from the base, at its own noised pictures."""
    task = task_of(base, photos, tmp_path, prior="distilled", time_sampling="uniform")
    d, pictures = task.denoiser, task.pictures
    pictures.own, pictures.prompts[4:] = 4, [("a photo of dog",)] * 2
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in task.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    rows = pictures.order(4, 0, 0)
    x0, labels = pictures.batch(rows)
    with torch.no_grad():
        found = task.loss(x0, labels, torch.Generator().manual_seed(3), 0.0)[1]
        draw.manual_seed(3)
        t = task.times.draw(4, draw)[0]
        torch.rand(4, generator=draw)  # no prompt is dropped
        of_latent, z = (torch.randn(4, *d.data.shape, generator=draw) for _ in range(2))
        y = x0[:, 0] + x0[:, 1] * of_latent
        x_t = d.process.add_noise(y, t, z)
        text = d.encode(["a photo of dog"] * 4)["text"]
        apart = (d(x_t, t, text=text).eps - orn.load(base)(x_t, t, text=text).eps).flatten(1).square().mean(1)
        asked = d.encode([pictures.prompts[i][0] for i in rows.tolist()])["text"]
        error = (d(x_t, t, text=asked).eps - z).flatten(1).square().mean(1)
    assert float(found["prior"]) > 0
    assert torch.allclose(found["prior"], apart[[1, 3]].mean(), rtol=1e-3)
    assert torch.allclose(found["own"], error[[0, 2]].mean(), rtol=1e-3)


def test_the_frozen_base_is_the_base(base, photos, tmp_path):
    for method in ("lora", "dreambooth"):
        task = task_of(base, photos, tmp_path, method=method, prior="frozen")
        plain = image(orn.load(base))
        with torch.no_grad():
            for p in task.model.parameters():
                p.add_(0.05)
        moved = image(task.denoiser)
        with task.switch.off():
            assert torch.equal(image(task.denoiser), plain), method
        assert not torch.equal(moved, plain) and torch.equal(image(task.denoiser), moved), method


def test_the_prior_pulls_back_to_the_base(base, photos, tmp_path):
    """Its gradient is zero at the base, and away from it leads back: minus the gradient moves the drift down."""
    task = task_of(base, photos, tmp_path, prior="frozen")
    y, t = torch.stack([z[0] for z in task.pictures.latents[:2]]), torch.tensor([0.3, 0.7])
    z = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    prompts = [task.settings.prompt] * 2
    assert float(task._drift(y, t, z, prompts).sum()) == 0
    parameters = list(task.model.parameters())
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    drift = task._drift(y, t, z, prompts).sum()
    gradient = torch.autograd.grad(drift, parameters)
    with torch.no_grad():
        size = sum(float(g.square().sum()) for g in gradient)
        for p, g in zip(parameters, gradient, strict=True):
            p.sub_(g, alpha=0.01 * float(drift) / size)
    assert float(task._drift(y, t, z, prompts).sum()) < float(drift)


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_behind_a_gate_the_class_is_the_base_bit_for_bit(our_own, photos, tmp_path, method):
    """The person's prompts are those of the same run without a gate, all others those of the base, in one batch too."""
    who, kind = "a photo of a sks dog", "a photo of a dog"
    given = {"method": method, "prompt": who, "learning_rate": 1e-2 if method == "lora" else 1e-4}
    open_ = orn.load(learn(our_own, photos, tmp_path / "open", **given).path)
    run = learn(our_own, photos, tmp_path / "run", prior="gated", checkpoint_every=1, **given)
    d, plain = orn.load(run.path), orn.load(our_own)
    assert [check.drift for check in run.checks] == [0.0, 0.0]
    assert torch.equal(image(d, kind), image(plain, kind)) and torch.equal(image(d, "asks"), image(plain, "asks"))
    assert (image(open_, kind) - image(plain, kind)).abs().max() > 1e-4
    assert (image(d, who) - image(open_, who)).abs().max() < 1e-5
    x, t = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.5, 0.2])
    cond = d.encode([kind, who, kind])
    mixed = d(x, t, **cond).x0
    for i, model in enumerate((plain, open_, plain)):
        alone = model(x, t, **plain.encode([kind, who, kind])).x0[i]
        assert (mixed[i] - alone).abs().max() < 1e-5
    # the other side of guidance is the base's
    of_who = orn.sample(d, (1, *d.data.shape), steps=1, seed=1, cond=d.encode([who]), guidance=0.0)
    assert (of_who - orn.sample(plain, (1, *d.data.shape), steps=1, seed=1)).abs().max() < 1e-4
    named = d.prompted([kind, who])
    assert torch.equal(
        named(x, t, label=torch.tensor([0, 0, -1])).x0,
        plain.prompted([kind, who])(x, t, label=torch.tensor([0, 0, -1])).x0,
    )
    with pytest.raises(UserError, match="behind a gate, the word sks"):
        d.save(tmp_path / "saved")


def test_a_gate_of_a_pipeline(base, photos, tmp_path):
    run = learn(base, photos, tmp_path / "run", prior="gated")
    d, plain = orn.load(run.path), orn.load(base)
    assert torch.equal(image(d, "a photo of dog"), image(plain, "a photo of dog"))
    assert torch.equal(image(d.sized(32, 32), "a dog"), image(plain.sized(32, 32), "a dog"))
    assert (image(d) - image(plain)).abs().max() > 1e-4 and torch.equal(image(d), image(run.model))
    assert (image(d.sized(32, 32)) - image(plain.sized(32, 32))).abs().max() > 1e-4
    assert 0.9 < samples_at_once(d, 1e9, True) / samples_at_once(plain, 1e9, True) < 1.1  # what `sample` asks first
    two = orn.sample(d, (2, *d.data.shape), steps=3, seed=1, guidance=2.0, cond=d.encode([PROMPT, "a dog"]))
    one = orn.sample(plain, (2, *d.data.shape), steps=3, seed=1, guidance=2.0, cond=plain.encode([PROMPT, "a dog"]))
    assert (two[1] - one[1]).abs().max() < 1e-4 < (two[0] - one[0]).abs().max()
    with pytest.raises(UserError, match="behind a gate, the word sks"):
        export_model(d, tmp_path / "folder")
    merged = orn.load(base)
    load_lora(merged, run.path / "lora_kohya.safetensors")
    assert (image(merged) - image(d)).abs().max() < 1e-4  # other programs have the LoRA without the gate


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "a photo of a dog"}, "needs a placeholder"),
        ({"prompt": "a photo of sksdog", "placeholder": "sks"}, "as a word of its own"),
        ({"train_text": True}, "goes through the gate"),
        ({"condition_dropout": 0.1}, "goes through the gate"),
        ({"prior_weight": 2.0}, "--prior-weight needs"),
    ],
)
def test_a_gate_that_nothing_opens_is_refused(base, photos, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        learn(base, photos, tmp_path / "run", prior="gated", **given)


def test_a_mask_is_a_weight_of_the_squared_error(base, photos, tmp_path):
    """With the weight w the loss is the mean of w times the squared error of what the network predicts."""
    task = task_of(base, photos, tmp_path)
    d, size = task.denoiser, task.pictures.latents[0].shape[-1]
    weight = torch.zeros(1, size, size)
    weight[:, : size // 4] = 4.0
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(2, *d.data.shape, generator=draw)
    z, t = torch.randn(y.shape, generator=draw), torch.tensor([0.2, 0.8])
    cond = task.texts.of([PROMPT] * 2, y.shape[1:])
    with torch.no_grad():
        out = d(d.process.add_noise(y, t, z), t, **cond).eps
        task.pictures.masks = [weight] * len(task.pictures)
        found = task._losses(y, torch.tensor([0, 1]), t, z, cond)
        assert torch.allclose(found, (weight * (out - z).square()).flatten(1).mean(1), rtol=1e-3)
        # pixels of weight 1 give the plain loss, by the same way
        masked = tasks._Masked(d, y, torch.ones(2, 1, size, size))
        plain = tasks._error(masked, d.prediction, d.data_std, y, t, z, **cond)
        assert torch.allclose(plain, d.loss(y, t, z, **cond), rtol=1e-3)


def test_captions_masks_and_buckets_are_read(base, tmp_path, capsys):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    draw = np.random.default_rng(0)
    for i, size in enumerate(((96, 48), (96, 48), (48, 96), (48, 96))):
        Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8)).save(photos / f"{i}.jpg")
    (photos / "0.txt").write_text("sks dog on grass\n a sks  dog")
    (photos / "1.txt").write_text(" ")
    Image.fromarray(np.pad(np.full((48, 24), 255, np.uint8), ((0, 48), (0, 24)))).save(masks / "0.png")
    run = learn(base, photos, tmp_path / "run", captions="auto", aspect="buckets", masks=masks, batch=2, steps=3)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 captions of 2 pictures" not in said and "2 pictures without one, 1 empty" in said
    assert "3 of 4 pictures have no mask" in said
    shapes = {tuple(p.shape[1:]) for p in run.pictures.pixels}
    assert len(shapes) == 2 and all(h != w for h, w in shapes)
    by_name = dict(zip(run.pictures.names, run.pictures.prompts, strict=True))
    assert by_name["0.jpg"] == ("sks dog on grass", "a sks dog") and by_name["1.jpg"] == by_name["3.jpg"] == (PROMPT,)
    pictures = PictureSet(run.model, run.pictures, None, 0.0)
    for step in range(8):
        rows = pictures.order(2, step, 0)
        assert len({pictures.latents[i].shape for i in rows.tolist()}) == 1
    used = torch.cat([pictures.order(1, step, 0) for step in range(8)])
    assert used.bincount().tolist() == [2, 2, 2, 2]


def test_the_held_out_loss_compares_runs_and_stops_them(base, photos, tmp_path):
    """At the base it is the same number whatever seed, method and rank; the run keeps its lowest point."""
    still = {"learning_rate": 1e-12, "steps": 1, "checkpoint_every": 1, "held_out": 0.34}
    first = [
        learn(base, photos, tmp_path / str(i), **still | given).checks[0].loss
        for i, given in enumerate(({"rank": 2}, {"seed": 5, "rank": 7, "batch": 2}, {"method": "dreambooth"}))
    ]
    assert max(first) - min(first) < 1e-5 * first[0]
    run = learn(
        base, photos, tmp_path / "run", steps=20, checkpoint_every=1, held_out=0.17, patience=2, learning_rate=0.3
    )
    losses = [check.loss for check in run.checks]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 and run.checks[-1].step < 20
    assert run.held_out is not None and not set(run.held_out.names) & set(run.pictures.names)
    model = run.model
    again = PictureSet(model, run.held_out, None, 0.0)
    task = Personalisation.__new__(Personalisation)
    task.denoiser, task.pictures, task.held_out, task.settings = model, again, None, run.settings
    task.texts = task.before = tasks.Texts(model, False)
    task.switch = Switch()
    assert task._checked(0).loss == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.parametrize(
    "changed", [{"recompute": True}, pytest.param({"accumulate": 2}, marks=pytest.mark.slow)], ids=str
)
def test_memory_is_saved_without_another_result(base, photos, tmp_path, changed):
    given = {"batch": 2, "steps": 2, "prior": "frozen"}
    plain = learn(base, photos, tmp_path / "plain", **given)
    other = learn(base, photos, tmp_path / "other", **given | changed)
    assert (image(plain.model) - image(other.model)).abs().max() < 1e-3


@pytest.mark.parametrize(
    "family", ["sdxl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd3", "pixart", "sd2"))]
)
def test_other_families_learn(photos, tmp_path, family):
    from interop import tiny

    base = tiny.build(family, tmp_path / "base")
    before = orn.load(base)
    run = learn(base, photos, tmp_path / "run", train_text=family == "sdxl", condition_dropout=0.5, batch=2)
    assert (image(orn.load(run.path)) - image(before)).abs().max() > 1e-4
    assert (image(orn.load(run.path)) - image(run.model)).abs().max() < 2e-3


@pytest.fixture(scope="module")
def our_own(tmp_path_factory) -> Path:
    """A run of ours that takes text, with an encoder of its own, not trained."""
    texts = ["a photo of a dog", "a photo of a cat on grass"]
    torch.manual_seed(0)
    encoder = TextEncoder.over(texts, BPE(learned_merges(texts)), width=32, layers=1)
    net = UNet(3, 16, width=16, multipliers=(1, 2), depths=(1, 1), attention=(8,), text_width=32)
    torch.nn.init.normal_(net.head[2].weight, std=0.1)
    d = TextDenoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=orn.SampleSpec((3, 16, 16)), encoder=encoder)
    for module in d.modules():
        for name in ("reading", "attention"):
            out = getattr(getattr(module, name, None), "out", None)
            if out is not None:
                torch.nn.init.normal_(out.weight, std=0.1)
    folder = tmp_path_factory.mktemp("own") / "run"
    d.save(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_run_of_our_own_is_a_base(our_own, photos, tmp_path, capsys, method):
    run = learn(
        our_own, photos, tmp_path / "run", method=method, train_text=True, prior="frozen", batch=4, steps=3,
        condition_dropout=0.5, prompt="a photo of a sks dog", learning_rate=1e-2 if method == "lora" else 1e-4,
    )  # fmt: skip
    plain, d, text = orn.load(our_own), orn.load(run.path), "a photo of a sks dog"
    assert (image(d, text) - image(plain, text)).abs().max() > 1e-4
    assert (image(d, text) - image(run.model, text)).abs().max() < 1e-4
    moved = parts_of(d)["text_encoder"].state_dict()
    assert any(not torch.equal(v, parts_of(plain)["text_encoder"].state_dict()[k]) for k, v in moved.items())
    assert "is a word of the tokenizer" not in capsys.readouterr().out
    if method == "lora":
        d = orn.load(our_own)
        load_lora(d, run.path / "lora_kohya.safetensors")
        merge_lora(d)
        assert torch.equal(image(d, text), image(orn.load(run.path), text))


WORD = "a photo of a <new> dog"


def learned_word(base: Path, photos: Path, out: Path, tokens: int) -> tuple[Run, TextDenoiser]:
    """A run that learned a word of so many tokens, and its model, which is otherwise the base."""
    run = learn(base, photos, out, method="textual-inversion", prompt=WORD, vectors=tokens, initial="dog")
    plain, d = orn.load(base), orn.load(run.path)
    assert isinstance(plain, TextDenoiser) and isinstance(d, TextDenoiser)
    for text in ("a photo of a dog", "new dog", ""):  # other texts mean what they meant
        assert torch.equal(d.encode([text])["text"], plain.encode([text])["text"])
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), d.net.parameters(), strict=True))
    assert (image(d, WORD) - image(run.model, WORD)).abs().max() < 1e-4
    assert (image(d, WORD) - image(plain, WORD)).abs().max() > 1e-4
    return run, d


def test_a_word_is_learned_by_a_run_with_its_own_encoder(our_own, photos, tmp_path):
    run, d = learned_word(our_own, photos, tmp_path / "run", 2)
    own = d.encoder
    assert isinstance(own, TextEncoder)
    plain = len(own.bpe)
    assert (
        own.tokenized([WORD])[0].tolist()[0].count(plain) == own.tokenized([WORD])[0].tolist()[0].count(plain + 1) == 1
    )
    assert own.tokenized(["a <NEW>, <new>"])[0].tolist()[0].count(plain) == 2
    # tokens as the word's neighbours see them: those of the texts beside it
    left, right = own.bpe.encode("a photo of a")[:-1], own.bpe.encode("dog")[1:]
    assert own.tokenized([WORD])[0].tolist() == [[*left, plain, plain + 1, *right]]
    d.save(tmp_path / "saved")  # an ordinary run that has the word
    again = orn.load(tmp_path / "saved")
    assert torch.equal(image(again, WORD), image(d, WORD))
    with pytest.raises(UserError, match="has learned the word <new> already"):
        learn(tmp_path / "saved", photos, tmp_path / "twice", method="textual-inversion", prompt=WORD)
    assert run.checks[-1].drift < 1e-9


def test_only_the_word_has_a_gradient_and_it_is_that_of_the_table(our_own, photos, tmp_path):
    """The rows' gradient is that which the same table, trained whole, has in their place."""
    task = task_of(our_own, photos, tmp_path, method="textual-inversion", prompt="a photo of a sks dog", vectors=1)
    task.pictures.prompts = [("a photo of a sks dog",)] * len(task.pictures.prompts)
    (rows,) = task.model.numbers.values()
    (gradient,) = torch.autograd.grad(loss_of(task, [0, 1]), [rows])
    encoder = task.denoiser.encoder
    number = encoder.new.tokens[0]
    encoder.merge_word()
    encoder.tokens.weight.requires_grad_(True)
    (table,) = torch.autograd.grad(loss_of(task, [0, 1]), [encoder.tokens.weight])
    assert bool(gradient.any()) and torch.allclose(gradient[0], table[number], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_word_is_learned_by_a_run_with_a_frozen_encoder(photos, tmp_path, tokens):
    from interop import tiny

    folder = tiny.build("sd1", tmp_path / "sd1")
    encoder = open_encoder(f"clip:{folder}")
    torch.manual_seed(0)
    net = UNet(3, 16, width=16, multipliers=(1, 2), depths=(1, 1), attention=(8,), text_width=encoder.width)
    for name, weight in net.named_parameters():
        if name.endswith("weight") and not bool(weight.any()):
            torch.nn.init.normal_(weight, std=0.1)
    d = TextDenoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=orn.SampleSpec((3, 16, 16)), encoder=encoder)
    d.save(tmp_path / "base")
    _, d = learned_word(tmp_path / "base", photos, tmp_path / "run", tokens)
    with pytest.raises(UserError, match="has no new words"):
        d.save(tmp_path / "saved")
