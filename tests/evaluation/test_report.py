import base64
import io
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.errors import RunError
from ornstein.evaluation import Curve, Images, Pairs, Report, Score, Skipped, Trajectory, markup, write_report
from ornstein.evaluation.charts import Axis, Line, chart, linear_ticks, log_ticks
from ornstein.evaluation.curves import losses, quality, smoothed

EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>&amp;${data}"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The elements of a page, and whether every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def pictures(n: int, channels: int = 1, size: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def full(name: str = "plain") -> Report:
    return Report(
        title=f"title {name}",
        lead=f"lead {name}",
        scores=[Score(f"score {name}", 0.123456, f"meaning {name}", reference=f"reference {name}"), Score("b", name)],
        samples=Images(pictures(30), torch.arange(30) % 3),
        real=Images(pictures(30, seed=1), torch.arange(30) % 3),
        class_names=["zero", f"class {name}"],
        trajectory=Trajectory(pictures(7 * 4).view(7, 4, 1, 8, 8), np.linspace(1, 0, 7).tolist()),
        neighbours=Pairs(pictures(5), pictures(5, seed=2), torch.linspace(0.1, 0.5, 5)),
        quality=[
            {"solver": solver, "steps": steps, f"metric {name}": 10.0 / steps, "agreement": 0.9}
            for solver in (f"solver {name}", "ddim")
            for steps in (20, 5, 10)
        ],
        losses=Curve(list(range(1, 201)), [1.0 / k for k in range(1, 201)]),
        warnings=[f"warning {name}"],
        facts={"command": f"command {name}", f"fact {name}": 3},
        settings={f"key {name}": f"value {name}", "seed": 1000, "rate": 0.0003, "ema": True, "guidance": None},
        skipped=[Skipped(f"file {name}.png", f"reason {name}")],
    )


def written(report: Report, folder) -> str:
    return write_report(folder / "report.html", report).read_text(encoding="utf-8")


def data_of(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def test_one_file_that_loads_nothing(tmp_path):
    html = written(full(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    page = Page(html)
    for attributes in [*page.all("img"), *page.all("script"), *page.all("link")]:
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith("data:")
    assert "://" not in html
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    assert len(html) < 60_000  # the curves are drawn without a library


def test_every_section_is_there_and_linked(tmp_path):
    page = Page(written(full(), tmp_path))
    ids = [section["id"] for section in page.all("section")]
    assert ids == ["scores", "samples", "denoising", "neighbours", "quality", "loss", "run", "settings", "skipped"]
    assert [link["href"] for link in page.all("a")] == [f"#{key}" for key in ids]
    for word in ("0.1235", "reference plain", "seed", "1000", "0.0003", "yes", "none", "file plain.png", "0.500"):
        assert word in page.text
    assert all(image.get("alt") for image in page.all("img"))


def test_sections_without_data_are_left_out(tmp_path):
    html = written(Report(title="bare"), tmp_path)
    page = Page(html)
    assert page.all("section") == page.all("nav") == page.all("img") == []
    assert len(html) < 20_000
    only = Page(written(Report(title="one", settings={"a": 1}), tmp_path))
    assert [section["id"] for section in only.all("section")] == ["settings"]


def test_every_text_is_escaped(tmp_path):
    plain, evil = written(full(), tmp_path), written(full(EVIL), tmp_path)
    # the same elements in the same order: no text became markup
    assert [tag for tag, _ in Page(evil).elements] == [tag for tag, _ in Page(plain).elements]
    page = Page(evil)
    for place in (
        "title",
        "lead",
        "warning",
        "score",
        "meaning",
        "reference",
        "class",
        "command",
        "fact",
        "key",
        "value",
        "reason",
    ):
        assert f"{place} {EVIL}" in page.text
    assert f"file {EVIL}.png" in page.text
    assert f"sample, class {EVIL}" in [image["alt"] for image in page.all("img")]
    assert not any("onerror" in attributes for _, attributes in page.elements)


def test_images_come_back_pixel_for_pixel(tmp_path):
    for channels in (1, 3):
        samples = pictures(6, channels, size=5)
        page = Page(written(Report(title="x", samples=Images(samples)), tmp_path))
        for image, attributes in zip(samples, page.all("img"), strict=True):
            assert attributes["src"] is not None
            decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))))
            expected = image.permute(1, 2, 0).numpy()
            assert np.array_equal(decoded.reshape(expected.shape), expected)


def test_samples_stand_beside_real_images_of_their_class(tmp_path):
    samples = Images(torch.full((4, 1, 2, 2), 10, dtype=torch.uint8), torch.tensor([1, 0, 1, 0]))
    real = Images(pictures(40, size=2), torch.arange(40) % 4)
    report = Report(title="x", samples=samples, real=real, class_names=["cat", "dog"])
    alts = [image["alt"] for image in Page(written(report, tmp_path)).all("img")]
    assert alts == ["sample, cat"] * 2 + ["real image, cat"] * 10 + ["sample, dog"] * 2 + ["real image, dog"] * 10


def test_many_classes_are_cut_and_counted(tmp_path):
    report = Report(title="x", samples=Images(pictures(200), torch.arange(200)))
    page = Page(written(report, tmp_path))
    assert len(page.all("img")) == 12
    assert "The first 12 of 200 classes are shown." in page.text


def test_the_sprite_holds_every_frame(tmp_path):
    frames = pictures(7 * 4, 3).view(7, 4, 3, 8, 8)
    report = Report(title="x", trajectory=Trajectory(frames, [1, 0.9, 0.8, 0.5, 0.3, 0.1, 0]))
    movie = data_of(written(report, tmp_path))["movie"]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(movie["sprite"].split(",")[1]))))
    assert movie["labels"][1] == "frame 2 of 7, t = 0.900"
    for k, frame in enumerate(frames):
        top, left = k // movie["columns"] * movie["height"], k % movie["columns"] * movie["width"]
        shown = sheet[top : top + movie["height"], left : left + movie["width"]]
        visible = shown[shown[..., 3] == 255][:, :3]
        expected = frame.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        assert sorted(map(tuple, visible.tolist())) == sorted(map(tuple, expected.tolist()))
        assert np.array_equal(shown[:8, :8, :3], frame[0].permute(1, 2, 0).numpy())


def test_long_trajectories_are_thinned_and_keep_both_ends(tmp_path):
    frames = torch.zeros(1001, 1, 1, 2, 2, dtype=torch.uint8)
    report = Report(title="x", trajectory=Trajectory(frames, np.linspace(1, 0, 1001).tolist()))
    labels = data_of(written(report, tmp_path))["movie"]["labels"]
    assert len(labels) == 64
    assert (labels[0], labels[-1]) == ("frame 1 of 64, t = 1.000", "frame 64 of 64, t = 0.000")


def test_large_frames_keep_the_sprite_small(tmp_path, monkeypatch):
    monkeypatch.setattr(markup, "_SPRITE_PIXELS", 4 * 9 * 32 * 32)
    frames = torch.zeros(4, 64, 3, 32, 32, dtype=torch.uint8)
    movie = data_of(written(Report(title="x", trajectory=Trajectory(frames, [0.0] * 4)), tmp_path))["movie"]
    assert movie["images"] == 9


def test_quality_is_drawn_and_in_a_table():
    rows = full().quality
    html = quality(rows)
    page = Page(html)
    assert html.count('<svg class="chart"') == 2  # one a metric
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)".*?<title>(.*?): (.*?)</title>', html)
    first = [(name, float(value)) for _, _, name, value in circles[:6]]
    assert first == [(solver, value) for solver in ("solver plain", "ddim") for value in (2.0, 1.0, 0.5)]
    # steps 5, 10, 20 stand at equal distances on a logarithmic axis, better (lower) values further down
    x = [float(c[0]) for c in circles[:3]]
    y = [float(c[1]) for c in circles[:3]]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and y[0] < y[1] < y[2]
    for word in ("metric plain", "agreement", "0.9", "20"):
        assert word in page.text


def test_a_chart_breaks_its_line_where_a_value_is_missing():
    svg = chart("label", [Line("a", [1, 2, 3, 4], [1.0, 2.0, None, 1.5])], Axis(), Axis())
    path = re.findall(r'class="line" style="[^"]*" d="([^"]*)"', svg)[1]  # the first is the legend's
    assert path.count("M") == 2 and path.count("L") == 1
    assert chart("label", [Line("a", [1], [None])], Axis(), Axis()) == ""
    flat = chart("label", [Line("a", [1, 2], [0.0, 0.0])], Axis(), Axis(ticks=[0.0]))
    assert ">0</text>" in flat


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([0.0, 10.0], [0, 2, 4, 6, 8, 10]), ([3.0, 3.0], [3]), ([-0.02, 0.11], [-0.05, 0, 0.05, 0.1, 0.15]), ([], [])],
)
def test_linear_ticks_are_round_numbers(values, ticks):
    assert linear_ticks(values) == pytest.approx(ticks)


def test_logarithmic_ticks():
    assert log_ticks([1.0 / k for k in range(1, 201)])[:4] == [0.001, 0.002, 0.005, 0.01]
    assert log_ticks([0.0, 1.0]) == log_ticks([]) == []
    assert log_ticks([1e-6, 1.0, None])[:2] == [1e-6, 1e-5]


def test_smoothing_keeps_a_straight_line_lowers_noise_and_survives_gaps():
    line = 5 + np.arange(400) / 100
    assert smoothed(line)[20:-20] == pytest.approx(line[20:-20], rel=1e-9)
    noisy = 1 + 0.1 * np.random.default_rng(0).standard_normal(2000)
    assert np.std(smoothed(noisy)) < 0.03
    assert smoothed(np.array([1.0, 1.0, np.nan, 1.0, np.inf, 1.0])) == pytest.approx(np.ones(6))
    for values in ([2.0], [2.0, 2.0], [2.0] * 3):
        assert smoothed(np.array(values)) == pytest.approx(values)


def test_long_losses_are_thinned_and_named_in_words():
    html = losses(Curve(list(range(100_000)), [1.0] * 50_000 + [0.5] * 50_000))
    assert len(html) < 30_000
    assert "1 at step 0, 0.5 at step 99999" in html
    gaps = losses(Curve([1, 2, 3], [1.0, float("nan"), -1.0]))
    assert "<svg" in gaps


def test_large_pictures_do_not_make_a_large_file(tmp_path):
    """Photographs of 256 pixels in every section: as PNG they would be 40 MB."""
    smooth = torch.nn.functional.interpolate(pictures(24, 3).float(), 256, mode="bicubic").clamp(0, 255)
    photos = (smooth + 6 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    photos = photos.to(torch.uint8)
    report = Report(
        title="x",
        samples=Images(photos),
        real=Images(photos),
        neighbours=Pairs(photos, photos),
        trajectory=Trajectory(photos[:8].expand(9, -1, -1, -1, -1), [1.0] * 9),
    )
    assert write_report(tmp_path / "report.html", report).stat().st_size < 6_000_000


def test_control_characters_reach_neither_page_nor_terminal(tmp_path):
    name = "cat\x1b[31m\x07\u202etxt.exe\r\n"
    samples = Images(pictures(1), torch.tensor([0]))
    report = Report(title=name, lead=name, class_names=[name], samples=samples)
    html = written(replace(report, skipped=[Skipped(name, name)], settings={name: name}, warnings=[name]), tmp_path)
    for character in "\x1b\x07\u202e\r":
        assert character not in html and character not in markup.plain(name)
    assert "\n" not in markup.plain(name) and "cat" in html


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "report.html"
    write_report(path, Report(title="old"))

    def full_disk(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(RunError, match=r"cannot write .*report\.html: the disk is full; free some space"):
            write_report(path, Report(title="new"))
    assert "old" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    write_report(path, Report(title="new"))
    assert "new" in path.read_text()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"samples": Images(torch.zeros(2, 1, 4, 4))}, "Samples must be uint8 .* got torch.float32"),
        ({"samples": Images(pictures(2), torch.zeros(3))}, r"2 Samples need labels of shape \(2,\)"),
        ({"trajectory": Trajectory(pictures(4).view(4, 1, 1, 8, 8), [0.0])}, "4 trajectory frames need as many times"),
        ({"trajectory": Trajectory(pictures(4), [0.0] * 4)}, r"\(K, n, C, H, W\), got shape"),
        ({"neighbours": Pairs(pictures(3), pictures(2))}, "3 samples need as many nearest images"),
        ({"losses": Curve([1, 2], [1.0])}, "2 loss steps need as many values, got 1"),
        ({"quality": [{"solver": "ddim", "steps": 0, "fd": 1.0}]}, "positive number of steps"),
        ({"quality": [{"steps": 5, "fd": 1.0}]}, "needs a solver"),
    ],
)
def test_wrong_parts_are_named_and_leave_no_file(tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report.html", Report(title="x", **parts))
    assert list(tmp_path.iterdir()) == []


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine to show the page in")
def test_in_a_browser_it_plays_fits_a_phone_and_asks_for_nothing(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    path = write_report(tmp_path / "report.html", full(EVIL))
    trouble: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#loss svg.chart")
        assert page.inner_text("#frame-label") == "frame 7 of 7, t = 0.000"
        finished = page.evaluate("document.getElementById('movie').toDataURL()")
        page.click("#play")
        for _ in range(100):  # the page's policy forbids eval, so no wait_for_function
            if page.input_value("#frame") == "3":
                break
            page.wait_for_timeout(30)
        page.click("#play")
        assert page.inner_text("#play") == "Play"
        paused = page.inner_text("#frame-label")
        assert page.evaluate("document.getElementById('movie').toDataURL()") != finished
        page.wait_for_timeout(600)
        assert page.inner_text("#frame-label") == paused
        page.fill("#frame", "0")
        assert page.inner_text("#frame-label") == "frame 1 of 7, t = 1.000"
        page.emulate_media(color_scheme="light")
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.title() == f"title {EVIL}"
        assert page.text_content("#quality .legend li") == f"solver {EVIL}"
        browser.close()
    assert trouble == []
