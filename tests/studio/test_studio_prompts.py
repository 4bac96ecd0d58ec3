"""The prompt box of the page Generate: shown for a model that takes text, and the same as the command line."""

from __future__ import annotations

import shlex
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.denoiser import SampleSpec
from ornstein.nets import UNet
from ornstein.text import BPE, TextDenoiser, TextEncoder
from ornstein.text.bpe import learned_merges
from running import done

client_module = pytest.importorskip("gradio_client", reason="the extra `studio` is not installed")
TEXTS = ("a red square", "a blue circle")


@pytest.fixture
def words(served) -> Iterator[Path]:
    """A run that takes text, with random weights."""
    torch.manual_seed(0)
    encoder = TextEncoder.over(TEXTS, BPE(learned_merges(TEXTS)), width=16, layers=1, heads=2)
    net = UNet(1, 8, width=16, multipliers=(1, 2), depths=(1, 1), attention=(4,), text_width=16)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    spec = SampleSpec((1, 8, 8))
    run = served.home / "words"
    TextDenoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=spec, encoder=encoder, examples=TEXTS).save(run)
    (run / "train.json").write_text('{"data": "shapes"}')
    yield run
    shutil.rmtree(run)


def test_a_prompt_is_drawn_as_by_the_command_line(served, words: Path, tmp_path: Path) -> None:
    client = client_module.Client(served.url, verbose=False, download_files=str(tmp_path / "downloads"))

    def drawn(run: Path, **more: object) -> tuple[object, ...]:
        asked = {"label": "each in turn", "steps": 2, "seed": 3, "n": 2, "solver": "automatic", "guidance": 2.0} | more
        return client.predict(run=str(run), **asked, api_name="/generate")

    try:
        _, _, zipped, command, *_ = drawn(words, prompt=TEXTS[0], negative=TEXTS[1])
        with zipfile.ZipFile(str(zipped)) as archive:
            archive.extractall(tmp_path / "drawn")
        done(*shlex.split(str(command))[1:], "--out", tmp_path / "sampled")
        for one, other in zip(sorted((tmp_path / "drawn").glob("*.png")), ("00000.png", "00001.png"), strict=True):
            with Image.open(one) as ours, Image.open(tmp_path / "sampled" / other) as theirs:
                assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        with pytest.raises(Exception, match="takes text: write a prompt, such as 'a red square'"):
            drawn(words)
        with pytest.raises(Exception, match="a model without text: leave the prompt empty"):
            drawn(served.home / "digits", prompt="a seven", guidance=1.0)
    finally:
        client.close()


@pytest.mark.slow
def test_the_box_is_shown_for_a_model_of_text(served, words: Path, browser_path: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(served.url)
        page.get_by_role("tab", name="Generate").click()
        box = page.locator("#prompt textarea, #prompt input").first
        expect(box).not_to_be_visible()
        menu = page.locator("label:visible, div:visible").get_by_label("Model").locator("visible=true").first
        menu.click()
        page.get_by_role("option", name="words").click()
        expect(box).to_be_visible(timeout=60_000)
        box.fill(TEXTS[0])
        page.get_by_role("button", name="Generate", exact=True).first.click()
        page.locator("#generate-status .good", has_text="16 samples of words").wait_for()
        menu.click()
        page.get_by_role("option", name="digits").click()
        expect(box).not_to_be_visible(timeout=60_000)
        browser.close()
