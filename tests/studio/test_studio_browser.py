"""The studio in a real browser: every page opened and its main job done, by users of all kinds."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ornstein.solvers import SOLVER

PATIENCE = 240_000  # milliseconds, for machines that are busy with other things
AGREED = "Ann Lee, a test of the page"


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page in a browser context of its own; afterwards: nothing was asked of anywhere else, and no script failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else trouble.append(r.url))
    page.goto(url)
    page.get_by_role("tab", name="Train").wait_for()
    yield page
    context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def page(browser, served) -> Iterator[Any]:
    with opened(browser, served.url) as found:
        yield found


def turn_to(page: Any, name: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("tab", name=name).click()


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()


def number(page: Any, label: str) -> Any:
    """The field of a slider."""
    return page.get_by_label(f"number input for {label}", exact=True).locator("visible=true").first


def field(page: Any, label: str) -> Any:
    """The input whose label begins with `label`; its help text is part of the label."""
    return page.locator("label:visible", has_text=re.compile(rf"^\s*{label}")).locator("input, textarea").first


def good(page: Any, place: str, words: str) -> None:
    page.locator(f"{place} .good", has_text=words).wait_for()


def fits_a_phone(page: Any) -> bool:
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(150)
    return page.evaluate("document.documentElement.scrollWidth") <= 400


def rows_are_shown(page: Any, gallery: str) -> bool:
    """Whether every picture of a gallery lies within its frame and nothing around it cuts it off."""
    return page.evaluate(
        """selector => [...document.querySelectorAll(selector + " img")].every(image => {
            const box = image.getBoundingClientRect();
            for (let e = image.parentElement; e && e !== document.body; e = e.parentElement) {
                const style = getComputedStyle(e), around = e.getBoundingClientRect();
                if (style.overflowY !== "visible" && (box.bottom > around.bottom + 1 || box.top < around.top - 1))
                    return false;
            }
            return true;
        })""",
        gallery,
    )


def until(what: Callable[[], bool], seconds: float = PATIENCE / 1000) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


def test_every_page_says_what_it_is_for_and_fits_a_phone(page) -> None:
    for name, words in (
        ("Train", "goes on when this page is closed"),
        ("Generate", "The same seed and settings"),
        ("Personalise", "Teach a model of text"),
        ("Video & noise lab", "Choose a covariance"),
        ("Face swap", "needs the agreement of the people shown"),
        ("Likelihood & evaluation", "Fewer is likelier"),
    ):
        turn_to(page, name)
        page.get_by_text(words).wait_for()
        assert fits_a_phone(page), name
    assert page.title() == "Ornstein studio"


def test_samples_are_drawn_and_their_coming_about_is_seen(page) -> None:
    turn_to(page, "Generate")
    press(page, "Generate")
    good(page, "#generate-status", "16 samples of digits, 20 steps, seed 0.")
    page.locator("#samples img").nth(15).wait_for()
    assert rows_are_shown(page, "#samples")
    page.get_by_text("State after step 20 of 20, t = 0.000").wait_for()
    page.locator("#place input[type=number]").fill("0")
    page.locator("#place input[type=range]").dispatch_event("pointerup")
    page.get_by_text("State after step 0 of 20, t = 1.000").wait_for()
    page.get_by_text("Quality against steps").click()
    press(page, "Compare")
    good(page, "#compare-status", "4 samples each, against 100 steps")
    page.locator("#curve .main-svg").first.wait_for()
    assert fits_a_phone(page)


def test_seeds_are_random_and_earlier_draws_come_back(browser, served) -> None:
    with opened(browser, served.url) as page:
        turn_to(page, "Generate")
        seed = page.locator("label:visible", has_text="Seed").locator("input").first
        number(page, "Steps").fill("2")
        press(page, "Generate")
        good(page, "#generate-status", "2 steps, seed 0.")
        press(page, "Random")
        until(lambda: seed.input_value() not in ("", "0"))
        number(page, "Steps").fill("3")
        press(page, "Generate")
        good(page, "#generate-status", f"3 steps, seed {seed.input_value()}.")
        page.locator("#history input").click()
        page.get_by_role("option", name="1: digits · seed 0 · 2 steps").click()
        press(page, "Use these settings")
        until(lambda: seed.input_value() == "0" and number(page, "Steps").input_value() == "2")
        page.locator("#samples img[src*='seed0-']").nth(15).wait_for()


def test_the_card_of_a_face_model_is_shown(page) -> None:
    turn_to(page, "Face swap")
    page.locator("#card .bad", has_text="squares: not for photographs").wait_for()


def test_empty_numbers_are_empty_fields(page) -> None:
    turn_to(page, "Train")
    assert field(page, "Size").input_value() == ""
    turn_to(page, "Likelihood & evaluation")
    assert field(page, "Minutes").input_value() == ""


def test_noise_is_seen_fitted_and_sampled_under(page) -> None:
    turn_to(page, "Video & noise lab")
    press(page, "Show noise")
    good(page, "#lab-status", "AR1(")
    page.locator("#matrix .main-svg").first.wait_for()
    page.locator("#own-clip video").wait_for()
    press(page, "Fit")
    good(page, "#lab-status", "Toeplitz(")
    page.locator("#fits .main-svg").first.wait_for()
    page.locator("#spectrum", has_text="fitted").wait_for()  # drawn again after the fit
    assert page.get_by_label("fitted").is_checked()
    page.get_by_label("ar1", exact=True).check()
    press(page, "Draw under both")
    good(page, "#lab-drawn", "4 clips each, seed 0")
    page.locator("#lags .main-svg").first.wait_for()
    page.locator("#under video").wait_for()
    assert fits_a_phone(page)


def test_a_face_is_swapped_with_consent_alone(browser, served) -> None:
    with opened(browser, served.url) as page:
        turn_to(page, "Face swap")
        page.set_input_files("#sources input[type=file]", served.pictures / "source.png")
        page.set_input_files("#target input[type=file]", served.pictures / "two.png")
        good(page, "#swap-status", "2 faces found in two.png.")
        assert page.locator("#swap").is_disabled()
        page.locator("#consent textarea").fill("yes")
        page.wait_for_timeout(500)
        assert page.locator("#swap").is_disabled()
        page.locator("#consent textarea").fill(AGREED)
        page.locator("#swap:not([disabled])").wait_for()
        page.get_by_label("face 1").uncheck()
        press(page, "Swap")
        good(page, "#swap-status", "Swapped 1 face in")
        page.locator("#slider img").first.wait_for()
        words = page.inner_text("#provenance")
        assert "signed; not changed since" in words and AGREED in words and "compositeWithTrained" in words
        sent = [path for path in served.cache.rglob("*.png") if path.name in ("two.png", "source.png")]
        assert sent
        assert fits_a_phone(page)
        folders = [path for path in served.cache.glob("page-*") if list(path.rglob("*swapped*"))]
        assert len(folders) == 1
    until(lambda: not folders[0].exists() and not any(path.exists() for path in sent))
    log = (served.home / "ornstein-swaps.jsonl").read_text()
    assert AGREED in log


@pytest.mark.slow
def test_faces_are_chosen_by_clicking_and_a_region_alone_is_repainted(browser, served) -> None:
    with opened(browser, served.url) as page:
        turn_to(page, "Face swap")
        page.set_input_files("#sources input[type=file]", served.pictures / "source.png")
        page.set_input_files("#target input[type=file]", served.pictures / "two.png")
        page.locator("#faces img").nth(1).wait_for()
        page.locator("#faces img").nth(0).click()
        until(lambda: page.locator("#chosen input:checked").count() == 1)
        page.get_by_text("What is repainted").click()
        for name in ("eyes", "brows", "nose", "skin"):
            page.locator("#regions").get_by_label(name, exact=True).uncheck()
        page.locator("#consent textarea").fill(AGREED)
        page.locator("#swap:not([disabled])").wait_for()
        press(page, "Swap")
        good(page, "#swap-status", "Swapped 1 face in")
        assert fits_a_phone(page)


def test_an_image_is_measured_a_set_is_ranked_and_a_model_evaluated(page, served) -> None:
    turn_to(page, "Likelihood & evaluation")
    page.set_input_files("#image input[type=file]", served.pictures / "grey.png")
    press(page, "Bits per dimension")
    good(page, "#bits-status", "bits/dim")
    page.locator("#terms .main-svg").first.wait_for()
    page.get_by_label("number input for Images, evenly spread over the set").fill("4")
    press(page, "Rank")
    good(page, "#rank-status", "4 images: mean")
    page.locator("#ranked img").nth(3).wait_for()
    field(page, "Samples").fill("12")
    page.locator("label:visible", has_text="Steps").locator("input, textarea").last.fill("2")
    page.get_by_label("Images for the likelihood").fill("2")
    field(page, "Minutes").fill("0.2")
    press(page, "Evaluate")
    good(page, "#evaluate-status", "Evaluated")
    assert SOLVER in page.inner_text("#tables")
    page.frame_locator("#evaluate-page iframe").get_by_text("Evaluation of digits").first.wait_for()
    assert rows_are_shown(page, "#ranked")
    assert fits_a_phone(page)


def test_a_training_outlives_the_tab_stops_and_goes_on(browser, served) -> None:
    name = "grown"
    with opened(browser, served.url) as page:
        page.get_by_label("Name of the run").fill(name)
        page.get_by_placeholder("digits, or").fill("digits")
        page.get_by_label("steps", exact=True).check()
        page.get_by_label("Train for").fill("2000")
        press(page, "Start")
        page.locator("#train-status", has_text="Reading").or_(
            page.locator("#train-status", has_text="Training")
        ).first.wait_for()
    with opened(browser, served.url) as page:  # the first tab is closed
        page.locator("#train-status", has_text="left").wait_for()
        page.locator("#loss .main-svg").first.wait_for()
        press(page, "Stop")
        page.locator("#train-status", has_text="Stopped; it can be resumed").wait_for()
        lines = (served.home / name / "metrics.jsonl").read_text().splitlines()
        step = int(re.findall(r'"step": (\d+)', lines[-1])[0])
        assert 0 < step < 2000
        page.get_by_text("Train longer").click()
        page.get_by_label("Steps in all, on Resume").fill(str(step + 10))
        press(page, "Resume")
        good(page, "#train-status", f"Finished · step {step + 10:,} of {step + 10:,}")
        page.locator("#report", has_text="report").wait_for()
        page.frame_locator("#report-page iframe").locator("h1").wait_for()
        assert fits_a_phone(page)


@pytest.mark.slow
def test_a_dog_is_learned_and_its_lora_taken_home(browser, served, tmp_path) -> None:
    pytest.importorskip("peft")
    from interop import tiny

    base = tiny.build("sd1", tmp_path / "sd")
    with opened(browser, served.url) as page:
        turn_to(page, "Personalise")
        field(page, "Name of the personalised run").fill("my dog")
        box = page.locator("#personal-base input")
        box.fill(str(base))
        box.press("Enter")
        page.locator("#personal-pictures input[type=file]").set_input_files(
            [str(served.pictures / name) for name in ("two.png", "source.png")]
        )
        field(page, "Prompt of the pictures").fill("a photo of sks dog")
        field(page, "Steps").fill("51")
        page.wait_for_timeout(1000)
        press(page, "Personalise")
        good(page, "#personal-status", "Finished")
        page.locator("#personal-previews img").first.wait_for()
        page.screenshot(path=tmp_path / "personalise.png", full_page=True)
        press(page, "LoRA files")
        page.locator("#lora-files", has_text="lora_kohya").wait_for()
        assert fits_a_phone(page)


def test_two_users_at_once_get_each_their_own(browser, served) -> None:
    with opened(browser, served.url) as one, opened(browser, served.url, color_scheme="dark") as other:
        pages = {11: one, 12: other}
        for seed, page in pages.items():
            turn_to(page, "Generate")
            page.locator("label:visible", has_text="Seed").locator("input").first.fill(str(seed))
        for page in pages.values():
            press(page, "Generate")
        for seed, page in pages.items():
            good(page, "#generate-status", f"16 samples of digits, 20 steps, seed {seed}.")
            page.locator("#download", has_text=f"digits-seed{seed}").wait_for()
            sources = page.locator("#samples img").evaluate_all("images => images.map(image => image.src)")
            assert all(f"seed{seed}-" in source for source in sources)


def test_closing_a_tab_stops_its_work_and_the_next_has_its_turn(browser, served, page) -> None:
    before = set(served.cache.glob("page-*"))
    with opened(browser, served.url) as busy:
        turn_to(busy, "Generate")
        number(busy, "Samples").fill("64")
        number(busy, "Steps").fill("200")
        press(busy, "Generate")
        # on a busy machine it may be done before the page shows that it has begun
        busy.locator("#generate-status", has_text=re.compile("sampling, t =|seed 0")).wait_for()
        own = set(served.cache.glob("page-*")) - before
        assert own
    until(lambda: not all(path.exists() for path in own))  # the other pages' stay
    turn_to(page, "Generate")
    page.locator("label:visible", has_text="Seed").locator("input").first.fill("5")
    press(page, "Generate")
    good(page, "#generate-status", "seed 5.")


def test_work_is_stopped_and_a_mistake_is_told_in_a_line(page) -> None:
    turn_to(page, "Generate")
    steps = number(page, "Steps")
    number(page, "Samples").fill("64")  # long enough to be stopped
    steps.fill("200")
    press(page, "Generate")
    page.locator("#generate-status", has_text="sampling, t =").wait_for()
    press(page, "Stop")
    page.get_by_text("Stopped, as asked.").wait_for()
    steps.fill("20")
    turn_to(page, "Train")
    page.get_by_label("Name of the run").fill("../outside")
    page.get_by_placeholder("digits, or").fill("digits")
    press(page, "Start")
    error = page.get_by_text("'../outside' cannot be the name of a run")
    error.wait_for()
    assert "Traceback" not in page.inner_text("body")
    error.wait_for(state="detached", timeout=30_000)  # it closes by itself


def test_what_is_too_large_is_refused_on_the_page(page, served, tmp_path: Path) -> None:
    large = tmp_path / "large.zip"
    large.write_bytes(b"\0" * (3 * 2**20))
    turn_to(page, "Train")
    page.set_input_files("#upload input[type=file]", large)
    page.get_by_text("exceed the maximum allowed size of 2.0 Mb").first.wait_for()
    assert not list(served.cache.rglob("large.zip"))


@pytest.mark.slow
def test_a_painted_part_is_filled(page, served) -> None:
    turn_to(page, "Edit")
    page.get_by_text("the picture does not say").wait_for()
    editor = page.locator("#edit-picture")
    with page.expect_file_chooser() as chooser:
        editor.locator("button[aria-label^='Upload']").first.click()
    chooser.value.set_files(served.pictures / "grey.png")
    editor.get_by_text("Upload an image").wait_for(state="detached")
    editor.locator("button[aria-label*='Brush']").first.click()
    box = editor.locator("canvas").first.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 15, middle[1] + 10, steps=4)
    page.mouse.up()
    page.wait_for_timeout(1500)  # the stroke is sent
    press(page, "Edit")
    good(page, "#edit-status", "4 answers")
    page.locator("#answers img").nth(3).wait_for()
    assert fits_a_phone(page)
