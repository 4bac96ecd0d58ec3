import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.evaluation import Clips, Report, write_report


def clips(count=4, frames=6, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, frames, 8, 8), dtype=torch.uint8, generator=generator)


def page_of(report, tmp_path):
    return write_report(tmp_path / "report.html", report).read_text(encoding="utf-8")


def films_of(page):
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])["clips"]


def test_each_side_has_a_player_and_every_frame(tmp_path):
    samples, real = clips(), clips(3)
    page = page_of(Report(title="x", clips=Clips(samples, real, fps=10)), tmp_path)
    assert page.count("<canvas") == 2 and 'id="clips"' in page
    assert "4 samples, playing" in page and "3 real clips, playing" in page
    for movie, pixels in zip(films_of(page), (samples, real), strict=True):
        assert movie["labels"] == [f"frame {k} of 6" for k in range(1, 7)]
        assert movie["pause"] == 100 and movie["images"] == len(pixels)
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(movie["sprite"].split(",")[1]))))
        for k in range(6):
            top, left = k // movie["columns"] * movie["height"], k % movie["columns"] * movie["width"]
            assert np.array_equal(sheet[top : top + 8, left : left + 8, :3], pixels[0, :, k].permute(1, 2, 0).numpy())


def test_long_clips_are_thinned_and_keep_their_speed(tmp_path):
    (movie,) = films_of(page_of(Report(title="x", clips=Clips(clips(1, 256), fps=8)), tmp_path))
    assert len(movie["labels"]) == 64 and movie["labels"][-1] == "frame 256 of 256"
    assert movie["pause"] == 4 * 125


def test_without_clips_there_is_no_section(tmp_path):
    page = page_of(Report(title="x"), tmp_path)
    assert 'id="clips"' not in page and films_of(page) == []


def test_wrong_clips(tmp_path):
    for wrong, message in (
        (Clips(clips()[0]), r"clips must be uint8 \(N, C, F, H, W\)"),
        (Clips(clips().float()), "clips must be uint8"),
        (Clips(clips(), fps=0), "a positive number of frames a second"),
    ):
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path / "report.html", Report(title="x", clips=wrong))


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine to show the page in")
def test_in_a_browser_both_play_and_go_round(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    path = write_report(tmp_path / "report.html", Report(title="x", clips=Clips(clips(), clips(), fps=20)))
    trouble: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("#clips-1-play:not([disabled])")
        assert page.inner_text("#clips-0-frame-label") == "frame 1 of 6"
        page.click("#clips-0-play")
        seen = set()
        for _ in range(100):
            seen.add(page.input_value("#clips-0-frame"))
            if len(seen) == 6:
                break
            page.wait_for_timeout(15)
        assert seen == set("012345")
        assert page.inner_text("#clips-1-frame-label") == "frame 1 of 6"  # the other one waits for its own button
        browser.close()
    assert trouble == []
