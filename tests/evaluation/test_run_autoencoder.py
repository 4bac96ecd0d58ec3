"""What an autoencoder's report says, against the model asked directly."""

import math
from pathlib import Path

import pytest
import torch

from ornstein.autoencoders import AUTOENCODERS, addressed
from ornstein.data import ImageSet, to_uint8, to_unit
from ornstein.evaluation.distortion import psnr
from ornstein.evaluation.panels import Panel, panel_section
from ornstein.evaluation.run_autoencoder import (
    evaluate_autoencoder,
    reconstruct,
    warnings_of,
    write_autoencoder_report,
)


def images(n: int = 20) -> ImageSet:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return ImageSet("toy", pixels, [str(i) for i in range(n)], [1] * n, skipped=[("<bad>.png", "truncated")])


def model(kind: str, **settings):
    torch.manual_seed(0)
    made = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1), **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return made.eval()


@pytest.mark.parametrize("kind", ["kl", "vae", "hvae"])
def test_the_figures_are_the_models(kind: str):
    one, held_out = model(kind), images()
    found = evaluate_autoencoder(one, held_out)
    x = to_unit(held_out.images)
    bound = one.bound(x, addressed(0, torch.arange(20)))
    size = 64 * math.log(2)
    assert found.count == 20
    assert found.bits == pytest.approx(float(bound.total.mean()) / size, rel=1e-5)
    assert found.rates == pytest.approx((bound.rates.mean(1) / size).tolist(), rel=1e-4, abs=1e-6)
    assert found.reconstruction + sum(found.rates) == pytest.approx(found.bits)
    back = to_uint8(one.decode(one.encode(x).mean))
    assert torch.equal(reconstruct(one, held_out.images), back)
    assert found.psnr == pytest.approx(float(psnr(back, held_out.images).mean()))


def test_a_plain_autoencoder_has_distortion_alone():
    found = evaluate_autoencoder(model("ae"), images())
    assert math.isnan(found.bits) and found.rates == () and found.psnr > 0
    assert warnings_of(model("ae"), found) == []


def test_a_codebook_of_which_little_is_used_is_told():
    one = model("vq", codes=16)
    with torch.no_grad():
        one.codebook.entries.fill_(100.0)
        one.codebook.entries[3] = 0.0  # nearest to everything
    found = evaluate_autoencoder(one, images())
    assert found.usage == 1 / 16 and found.perplexity == pytest.approx(1.0)
    (warning,) = warnings_of(one, found)
    assert "collapsed codebook: 6.2%" in warning and "--codes" in warning


def test_a_layer_that_carries_nothing_is_told():
    one = model("kl")
    with torch.no_grad():
        for parameter in one.encoder.parameters():
            parameter.zero_()  # mean 0, log std 0: the prior itself
    (warning,) = warnings_of(one, evaluate_autoencoder(one, images()))
    assert warning.startswith("collapsed posterior: layer 1 carries 0 nats")


def test_the_report(tmp_path: Path):
    scores, warnings = write_autoencoder_report(tmp_path, model("vq", codes=16), images(), images(), "A <title>", {})
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in page and "&lt;bad&gt;.png" in page
    assert {"PSNR", "SSIM", "Bits/dim", "Codebook in use"} == {s.name for s in scores}
    assert all(w in page for w in warnings)
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "reconstructions.png").is_file()
    write_autoencoder_report(tmp_path / "b", model("ae"), images(), images(), "plain", {})
    assert not (tmp_path / "b" / "samples.png").exists()


def test_a_panel_is_a_table_of_images():
    pixels = torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8)
    section = panel_section(Panel("T", "A & B", pixels, ("a", "<b>", "c"), ("one", "two")))
    assert section.count("<img") == 6 and section.count("<tr>") == 3
    assert "A &amp; B" in section and "&lt;b&gt;" in section and 'alt="two, c"' in section


@pytest.mark.parametrize(
    ("pixels", "columns"),
    [
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), ()),
        (torch.zeros(2, 3, 1, 4, 4), ()),
        (torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8), ("a",)),
    ],
)
def test_a_wrong_panel_is_refused(pixels: torch.Tensor, columns: tuple[str, ...]):
    with pytest.raises(ValueError, match=r"uint8|as many names"):
        panel_section(Panel("T", "", pixels, columns))
