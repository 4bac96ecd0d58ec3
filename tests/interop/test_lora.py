"""LoRA files: three kinds, one strength; read by diffusers as by us, whatever rank and alpha are."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import ornstein as orn
from ornstein.errors import UserError
from ornstein.interop.exchange import export_model
from ornstein.interop.lora import (
    load_lora,
    merge_lora,
    parts_of,
    read_lora,
    unload_lora,
    with_base,
    write_lora,
)
from ornstein.interop.lora_names import dotted
from ornstein.nets.lora import Lora, LoraLayer, adapted, attach, base_hash, combine, detach, merge, trainable

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

Folders = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
KINDS = ("ornstein", "diffusers", "kohya")


# In the file, and as component and layer: of kohya, of SDXL by its authors' names, of older versions of diffusers.
NAMES = """
    lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q
        unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q
    lora_unet_mid_block_attentions_0_proj_in
        unet.mid_block.attentions.0.proj_in
    lora_unet_up_blocks_1_resnets_2_time_emb_proj
        unet.up_blocks.1.resnets.2.time_emb_proj
    lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj
        unet.up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj
    lora_te_text_model_encoder_layers_11_self_attn_q_proj
        text_encoder.text_model.encoder.layers.11.self_attn.q_proj
    lora_te2_text_model_encoder_layers_3_mlp_fc1
        text_encoder_2.text_model.encoder.layers.3.mlp.fc1
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k
        unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k
    lora_unet_input_blocks_8_0_in_layers_2
        unet.down_blocks.2.resnets.1.conv1
    lora_unet_input_blocks_3_0_op
        unet.down_blocks.0.downsamplers.0.conv
    lora_unet_middle_block_1_transformer_blocks_3_attn1_to_out_0
        unet.mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0
    lora_unet_middle_block_2_emb_layers_1
        unet.mid_block.resnets.1.time_emb_proj
    lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2
        unet.up_blocks.1.attentions.2.transformer_blocks.1.ff.net.2
    lora_unet_output_blocks_2_2_conv
        unet.up_blocks.0.upsamplers.0.conv
    lora_unet_single_transformer_blocks_3_attn_to_q
        transformer.single_transformer_blocks.3.attn.to_q
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out
        unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0
    transformer.transformer_blocks.0.attn.add_q_proj
        transformer.transformer_blocks.0.attn.add_q_proj
"""


def pairs(text: str) -> list[tuple[str, str]]:
    lines = text.split()
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.fixture
def folder(pipeline: Folders) -> Path:
    return pipeline("sd1")


@pytest.fixture
def lora(folder: Path) -> Lora:
    """Rank 4 and alpha 2 on attention, a convolution of rank 3 and alpha 0.1, and the text encoder."""
    d, draw = orn.load(folder), torch.Generator().manual_seed(0)
    layers = {}
    for name, module in parts_of(d).named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0", *TEXT)):
            layers[name] = (4, 2.0)
        elif name.endswith("resnets.0.conv1"):
            layers[name] = (3, 0.1)
    weights = {n: parts_of(d).get_submodule(n).weight for n in layers}
    assert len({n.split(".")[0] for n in layers}) == 2 and any(w.ndim == 4 for w in weights.values())
    made = {}
    for name, (rank, alpha) in layers.items():
        shape = weights[name].shape
        down = torch.randn(rank, *shape[1:], generator=draw) * 0.4
        made[name] = LoraLayer(down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=draw) * 0.4, alpha)
    return with_base(Lora(made, facts={"modelspec.title": "a test"}), d)


def image(d: Any) -> Tensor:
    cond = d.encode(["a red square", "b"])
    latents = orn.sample(d, (2, *d.data.shape), "ddim", 2, seed=1, guidance=3.0, cond=cond)
    return d.decode(latents)


def theirs(folder: Path, file: Path | None) -> Tensor:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    if file is not None:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    return theirs_of(pipe)


def theirs_of(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        ["a red square", "b"], num_inference_steps=2, guidance_scale=3.0, output_type="np",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return torch.from_numpy(out.images).permute(0, 3, 1, 2) * 2 - 1


def ours_like_theirs(folder: Path, file: Path | None) -> Tensor:
    d = orn.load(folder)
    if file is not None:
        load_lora(d, file)
    start = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    cond = d.encode(["a red square", "b"])
    latents = orn.sample(d, start.shape, "ddim", grid=d.times(2), guidance=3.0, cond=cond, start=start)
    return d.decode(latents).clamp(-1, 1)


def test_every_kind_of_file_is_the_same_lora(folder: Path, lora: Lora, tmp_path: Path) -> None:
    """Own -> diffusers -> kohya -> own, rank and alpha different: tensors, alphas and images to the last bit."""
    d, file, images, now = orn.load(folder), None, {}, lora
    plain = image(d)
    for step, kind in enumerate(("ornstein", "diffusers", "kohya", "ornstein")):
        file = write_lora(now, tmp_path / f"{step}.safetensors", kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            now = read_lora(file)  # without the model: the names are those of the file
        assert now.layers.keys() == lora.layers.keys() and now.base == lora.base
        for name, layer in lora.layers.items():
            again = now.layers[name]
            assert torch.equal(again.down, layer.down) and torch.equal(again.up, layer.up)
            assert (again.alpha, again.rank) == (layer.alpha, layer.rank)
        assert now.facts["modelspec.title"] == "a test"
        load_lora(d, file)
        images[step] = image(d)
        unload_lora(d)
    for one in images.values():
        assert float((one - images[0]).abs().max()) == 0.0
    assert float((images[0] - plain).abs().max()) > 0.05
    assert torch.equal(image(d), plain)  # without it the model is what it was
    fresh = orn.load(folder)
    load_lora(fresh, lora)
    assert torch.equal(image(fresh), images[0])  # nothing of the plain one was remembered
    merge_lora(fresh)
    torch.testing.assert_close(image(fresh), images[0], rtol=0, atol=0)


def test_diffusers_reads_ours(folder: Path, lora: Lora, tmp_path: Path) -> None:
    files = {kind: write_lora(lora, tmp_path / f"{kind}.safetensors", kind) for kind in ("diffusers", "kohya")}
    images = {kind: theirs(folder, file) for kind, file in files.items()}
    assert float((images["diffusers"] - images["kohya"]).abs().max()) == 0.0
    own = ours_like_theirs(folder, files["kohya"])
    torch.testing.assert_close(own, images["kohya"], rtol=0, atol=2e-4)
    assert float((images["kohya"] - theirs(folder, None)).abs().max()) > 0.05


@pytest.mark.parametrize("dora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_we_read_what_diffusers_writes(folder: Path, tmp_path: Path, dora: bool) -> None:
    """With its metadata, without it (what is assumed is said), in kohya's form, and peft's own folder."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_v", "to_out.0"], use_dora=dora)
    pipe.unet.add_adapter(config)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
        elif "magnitude" in name:
            parameter.data.mul_(1 + 0.2 * torch.rand_like(parameter))
    expected = theirs_of(pipe)
    state = peft.get_peft_model_state_dict(pipe.unet)
    packed = pipe.pack_weights(state, "unet")
    meta = {f"unet.{k}": list(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    save_file(
        packed, tmp_path / "said.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(meta, default=str)}
    )
    own = ours_like_theirs(folder, tmp_path / "said.safetensors")
    torch.testing.assert_close(own, expected, rtol=0, atol=2e-4)
    again = write_lora(read_lora(tmp_path / "said.safetensors"), tmp_path / "kohya.safetensors", "kohya")
    torch.testing.assert_close(ours_like_theirs(folder, again), own, rtol=0, atol=0)
    # diffusers leaves out the magnitudes of a kohya file, and says so
    back = write_lora(read_lora(again), tmp_path / "back.safetensors", "diffusers") if dora else again
    torch.testing.assert_close(theirs(folder, back), expected, rtol=0, atol=2e-4)
    # peft's own folder
    saved = {f"base_model.model.{k}": v for k, v in state.items()}
    (tmp_path / "peft").mkdir()
    save_file(saved, tmp_path / "peft" / "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config.to_dict(), default=list))
    of_peft = read_lora(tmp_path / "peft")
    assert of_peft.layers.keys() == read_lora(again).layers.keys()
    assert {layer.alpha for layer in of_peft.layers.values()} == {2.0}
    # without metadata
    save_file(packed, tmp_path / "silent.safetensors")
    with pytest.warns(UserWarning, match="does not say the alpha of it: it is taken to be the rank"):
        silent = read_lora(tmp_path / "silent.safetensors")
    assert {layer.alpha for layer in silent.layers.values()} == {4.0}
    assert (silent.layers.popitem()[1].magnitude is not None) == dora


def test_names_of_kohya_without_the_model() -> None:
    for flat, name in pairs(NAMES):
        assert dotted(flat) == name


def test_files_of_kohya_and_older_ones_of_diffusers(folder: Path, lora: Lora, tmp_path: Path) -> None:
    """Without our own note of the names, and in the attention processors' names: the model tells the layers apart."""
    tensors = load_file(write_lora(lora, tmp_path / "k.safetensors", "kohya"))
    assert {k.split(".", 1)[1] for k in tensors} == {"alpha", "lora_down.weight", "lora_up.weight"}
    assert {k.split("_")[1] for k in tensors} == {"unet", "te"}
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["ss_network_module"], facts["ss_network_dim"]) == ("networks.lora", "Dynamic")
    save_file(tensors, tmp_path / "foreign.safetensors", {"ss_output_name": "red"})
    for parts in (parts_of(orn.load(folder)), None):
        foreign = read_lora(tmp_path / "foreign.safetensors", parts)
        names = {n.replace("text_model.", "") for n in foreign.layers}
        assert names == {n.replace("text_model.", "") for n in lora.layers}
        assert foreign.facts["ss_output_name"] == "red" and foreign.base is None
    attention = {n: v for n, v in lora.layers.items() if ".attn1." in n}
    old = {}
    for name, layer in attention.items():
        stem = name.replace(".to_out.0", ".to_out").replace(".attn1.", ".attn1.processor.")
        old |= {f"{stem}_lora.down.weight": layer.down, f"{stem}_lora.up.weight": layer.up}
    save_file(old, tmp_path / "old.safetensors")
    assert read_lora(tmp_path / "old.safetensors").layers.keys() == attention.keys()


@pytest.mark.parametrize(
    "name", [*("sdxl", "sd3"), *(pytest.param(n, marks=pytest.mark.slow) for n in ("flux", "pixart"))]
)
def test_the_other_families(pipeline: Folders, name: str, tmp_path: Path) -> None:
    """A new LoRA on each: written in every kind, read without the model, and on again with the same output."""
    d = orn.load(pipeline(name))
    parts = parts_of(d)
    made = trainable(parts, ("to_q", "to_out.0", *TEXT), 2, 1.0, torch.Generator().manual_seed(0))
    for weight in made.values():
        nn.init.normal_(weight.up, std=0.3)
    lora = with_base(Lora({n: w.layer for n, w in made.items()}), d)
    before = {n: parts.get_submodule(n).weight.detach().clone() for n in lora.layers}
    detach(parts)
    for kind in KINDS:
        load_lora(d, write_lora(lora, tmp_path / f"{kind}.safetensors", kind))
        for n, weight in before.items():
            assert torch.equal(parts.get_submodule(n).weight, weight)
        detach(parts)


def test_the_equation_and_its_inverse() -> None:
    """E37: W + (alpha/r) B A of a linear layer and of a convolution; merged, detached, of several, and of DoRA."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Linear(16, 5)).requires_grad_(False)
    x, plain = torch.randn(2, 3, 4, 4), {k: v.clone() for k, v in net.state_dict().items()}
    conv = LoraLayer(torch.randn(2, 3, 3, 3), torch.randn(8, 2, 1, 1), 5.0)
    linear = LoraLayer(torch.randn(3, 16), torch.randn(5, 3), 0.5, torch.rand(5) + 0.5)
    attach(net, {"0": conv, "2": linear}, 0.7)
    hidden = net[0]._conv_forward(x, plain["0.weight"], plain["0.bias"])
    change = F.conv2d(F.conv2d(x, conv.down, padding=1), conv.up)
    hidden = (hidden + 0.7 * 2.5 * change).flatten(2)
    moved = plain["2.weight"] + 0.7 * (0.5 / 3) * linear.up @ linear.down
    moved = linear.magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    expected = hidden @ moved.mT + plain["2.bias"]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert set(adapted(net)) == {"0", "2"} and base_hash(net, ["0"]) == base_hash(nn.Sequential(net[0]), ["0"])
    detach(net)
    assert all(torch.equal(v, plain[k]) for k, v in net.state_dict().items()) and not adapted(net)
    attach(net, {"0": conv})
    attach(net, {"0": conv}, -0.5)  # they add up
    merge(net)
    torch.testing.assert_close(net[0].weight, plain["0.weight"] + 0.5 * conv.delta().reshape(8, 3, 3, 3))
    assert net.state_dict().keys() == plain.keys() and not adapted(net)
    attach(net, {"0": conv}, -0.5)
    merge(net)  # unmerged, to rounding
    torch.testing.assert_close(net[0].weight, plain["0.weight"], rtol=0, atol=1e-5)


def test_a_new_lora_changes_nothing_and_learns() -> None:
    net = orn.nets.UNet(1, 8, classes=2, width=16, multipliers=(1, 1), depths=(1, 1), attention=(8, 4))
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.SampleSpec((1, 8, 8), ("a", "b")))
    for parameter in net.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    x, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    plain, frozen = d(x, 0.5, label=label).x0, {k: v.clone() for k, v in net.state_dict().items()}
    parts = parts_of(d)
    made = trainable(parts, ("qkv", "attention.out"), 2, 4.0, torch.Generator().manual_seed(1))
    assert all(name.startswith("unet.") for name in made)
    torch.testing.assert_close(d(x, 0.5, label=label).x0, plain, rtol=0, atol=0)  # B is zero
    learned = [p for p in net.parameters() if p.requires_grad]
    assert len(learned) == 2 * len(made)
    optimizer, z = torch.optim.Adam(learned, 0.02), torch.randn(4, 1, 8, 8)
    losses = []
    for _ in range(30):
        loss = d.loss(x, torch.full((4,), 0.5), z, label=label).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    lora = Lora({n: w.layer for n, w in made.items()})
    after = d(x, 0.5, label=label).x0
    detach(parts)
    assert all(torch.equal(v, frozen[k]) for k, v in net.state_dict().items())
    load_lora(d, lora)
    assert torch.equal(d(x, 0.5, label=label).x0, after) and not torch.equal(after, plain)


def test_several_in_one() -> None:
    torch.manual_seed(0)
    one = Lora({"unet.a": LoraLayer(torch.randn(2, 6), torch.randn(5, 2), 1.0)}, base="x")
    two = Lora({
        "unet.a": LoraLayer(torch.randn(4, 6), torch.randn(5, 4), 3.0),
        "unet.b": LoraLayer(torch.randn(1, 3, 3, 3), torch.randn(4, 1, 1, 1), 1.0),
    })  # fmt: skip
    both = combine([one, two], [0.5, -2.0])
    expected = 0.5 * one.layers["unet.a"].delta() - 2 * two.layers["unet.a"].delta()
    assert both.layers["unet.a"].rank == 5 and both.base == "x"  # 2 + 4 are above the layer's size
    torch.testing.assert_close(both.layers["unet.a"].delta(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.layers["unet.b"].delta(), -2 * two.layers["unet.b"].delta())
    torch.testing.assert_close(one.scaled(3.0).layers["unet.a"].delta(), 3 * one.layers["unet.a"].delta())


def test_mistakes(folder: Path, pipeline: Folders, lora: Lora, tmp_path: Path) -> None:
    file = write_lora(lora, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="exists"):
        write_lora(lora, file)
    with pytest.raises(UserError, match="known: ornstein, diffusers, kohya"):
        write_lora(lora, tmp_path / "b.safetensors", "civitai")  # pyright: ignore[reportArgumentType]
    other = orn.load(folder)
    other.net.model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.data.mul_(1.01)
    with pytest.raises(
        UserError, match=rf"trained on the base {str(lora.base)[:12]}, and this model is [0-9a-f]{{12}}"
    ):
        load_lora(other, file)
    assert not adapted(parts_of(other))
    load_lora(other, file, any_base=True)
    assert adapted(parts_of(other))
    with pytest.raises(UserError, match=r"no linear layer or convolution .*another base"):
        load_lora(orn.load(pipeline("sd3")), file)
    with pytest.raises(UserError, match="rank 9 is not between 1 and 8"):
        LoraLayer(torch.zeros(9, 8), torch.zeros(20, 9), 1.0)
    with pytest.raises(UserError, match=r"to_q: the rank 64 is not between 1 and 8"):
        trainable(parts_of(orn.load(folder)), ["to_q"], 64)
    with pytest.raises(UserError, match="ends in nothing"):
        trainable(parts_of(orn.load(folder)), ["nothing"], 1)
    layer = next(iter(lora.layers.values()))
    for tensors, message in (
        ({"a.lora_A.weight": layer.down}, r"has a\.lora_A\.weight, and no a\.lora_B\.weight"),
        ({"a.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
        ({"a.lora_A.weight": torch.ones(3, 4), "a.lora_B.weight": torch.ones(4, 2)}, "not those of a LoRA"),
        ({"a.lora_A.weight": torch.ones(3, 4) * float("nan"), "a.lora_B.weight": torch.ones(4, 3)}, "not finite"),
        ({"a.lora_A.weight": torch.ones(9, 4), "a.lora_B.weight": torch.ones(4, 9)}, "rank 9"),
    ):
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(UserError, match=message):
            read_lora(tmp_path / "bad.safetensors")
    fine = {"unet.a.lora_A.weight": torch.ones(1, 4), "unet.a.lora_B.weight": torch.ones(4, 1)}
    save_file(fine, tmp_path / "bad.safetensors", {"lora_adapter_metadata": "["})
    with pytest.raises(UserError, match="lora_adapter_metadata cannot be read"):
        read_lora(tmp_path / "bad.safetensors")
    for name in ("a.pt", "b.bin"):
        with pytest.raises(UserError, match="is a pickle"):
            read_lora(tmp_path / name)
    with pytest.raises(UserError, match="holds 2 files"):
        read_lora(tmp_path)
    dora = Lora({"unet.a": LoraLayer(torch.ones(1, 4), torch.ones(4, 1), 1.0, torch.ones(4))})
    with pytest.raises(UserError, match="DoRA"):
        dora.scaled(0.5)
    with pytest.raises(UserError, match="DoRA"):
        combine([dora, dora], [1, 1])
    with pytest.raises(UserError, match="different bases"):
        combine([lora, Lora(lora.layers, base="y")], [1, 1])


def test_the_strength_that_is_lost_elsewhere_is_kept_here(folder: Path, tmp_path: Path) -> None:
    """Rank 4 and alpha 2 through diffusers' own saving without metadata, its conversion to kohya's form, and ours."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_v"]))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    state = peft.get_peft_model_state_dict(pipe.unet)
    pipe.save_lora_weights(tmp_path / "theirs", unet_lora_layers=state)
    packed = pipe.pack_weights(state, "unet")
    save_file(diffusers.utils.convert_state_dict_to_kohya(packed), tmp_path / "kohya.safetensors")
    assert {float(v) for k, v in load_file(tmp_path / "kohya.safetensors").items() if k.endswith("alpha")} == {4.0}
    names = {key.split(".lora_")[0] for key in packed}
    layers = {n: LoraLayer(packed[f"{n}.lora_A.weight"], packed[f"{n}.lora_B.weight"], 2.0) for n in names}
    meant, plain = theirs_of(pipe), theirs(folder, None)
    effect = float((meant - plain).abs().max())
    for file in (tmp_path / "theirs" / "pytorch_lora_weights.safetensors", tmp_path / "kohya.safetensors"):
        assert float((theirs(folder, file) - meant).abs().max()) > 0.3 * effect  # at alpha 4
    for kind in ("diffusers", "kohya"):
        file = write_lora(Lora(layers), tmp_path / f"ours-{kind}.safetensors", kind)
        assert float((theirs(folder, file) - meant).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["sdxl", pytest.param("sd1", marks=pytest.mark.slow)])
def test_a_pipeline_with_a_lora_in_its_weights(pipeline: Folders, name: str, tmp_path: Path) -> None:
    """`export_model` writes the whole pipeline; diffusers and we open it, with the LoRA merged."""
    d = orn.load(pipeline(name))
    parts = parts_of(d)
    made = trainable(parts, ("to_q", *TEXT), 2, 1.0, torch.Generator().manual_seed(0))
    for weight in made.values():
        nn.init.normal_(weight.up, std=0.3)
    second = {"text_encoder_2"} if name == "sdxl" else set()
    assert {n.split(".")[0] for n in made} == {"unet", "text_encoder"} | second
    with pytest.raises(UserError, match="merge them into its weights first"):
        export_model(d, tmp_path / "out")
    merge_lora(d)
    d.forget_text()  # nothing was loaded by `load_lora` here
    export_model(d, tmp_path / "out")
    with pytest.raises(UserError, match="exists"):
        export_model(d, tmp_path / "out")
    again = orn.load(tmp_path / "out")
    assert torch.equal(image(again), image(d)) and not list((tmp_path / "out").rglob("*.bin"))
    assert float((image(orn.load(pipeline(name))) - image(d)).abs().max()) > 1e-3
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    for module, value in d.net.model.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[module], value)
