"""The evaluation of models whose every figure is known: they make real images, or one image, or diverge."""

import dataclasses
import importlib
import json
import math
import time

import pytest
import torch

import ornstein as orn
from ornstein.data import ImageSet
from ornstein.errors import UserError
from ornstein.evaluation import held_out as streaming
from ornstein.evaluation.features import open_features
from ornstein.evaluation.held_out import bits_of_images
from ornstein.evaluation.matched import class_numbers
from ornstein.evaluation.measure import evaluate_model
from ornstein.evaluation.pieces import Pieces
from ornstein.evaluation.plan import Plan
from ornstein.evaluation.results import Spread
from ornstein.evaluation.summary import tables

SHAPE = (1, 4, 4)


def pictures(n, seed, shape=SHAPE, labels=None, classes=()):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, *shape), generator=g, dtype=torch.uint8)
    names = [str(i) for i in range(n)]
    return ImageSet(f"set{seed}", pixels, names, [1] * n, labels, list(classes))


class Net(torch.nn.Module):
    """An x0-prediction that is a constant picture, or the result of `make`; it keeps the labels of its calls."""

    def __init__(self, make=lambda x, log_snr, label: torch.zeros_like(x)):
        super().__init__()
        self.make = make
        self.labels = []

    def forward(self, x, log_snr, label=None):
        self.labels.append(None if label is None else label.clone())
        return self.make(x, log_snr, label)


def model(make=lambda x, log_snr, label: torch.zeros_like(x), classes=(), shape=SHAPE):
    return orn.Denoiser(Net(make), orn.Process(orn.schedules.Cosine()), "x0", data=orn.Data(shape, classes))


def normal_density(x, log_snr, label):
    """The exact x0-prediction for data N(0, I)."""
    return x * torch.sigmoid(log_snr).sqrt().view(-1, 1, 1, 1)


QUICK = Plan(count=16, solvers=("ddim",), steps=(2,), seeds=2, methods=(), batch=7)


def test_a_model_of_one_picture_recalls_one_image_and_spreads_over_no_seed():
    held_out, train = pictures(30, 0), pictures(40, 1)
    calls = []
    result = evaluate_model(model(), QUICK, held_out, train, open_features("pixels"), lambda *call: calls.append(call))
    (row,) = result.rows
    # All samples are grey: the distance of a point to the Gaussian of the reference is known.
    real = open_features("pixels")(held_out.images)(held_out.images).double()
    assert result.reference == 16
    assert row.frechet.std == row.kernel.std == 0
    assert row.recall.mean == 0 and row.precision.mean in (0, 1)
    assert row.frechet.mean > 0.8 * float(real.square().mean(0).sum())
    assert torch.equal(result.samples, torch.full((16, *SHAPE), 128, dtype=torch.uint8))
    assert result.floor is not None and result.floor.recall.mean > 0.5
    # the panel is of training images and their distance is that of the pictures
    expected = (result.samples.double() - result.nearest.double()).square().mean((1, 2, 3)).sqrt() / 127.5
    torch.testing.assert_close(result.distances, expected)
    assert all(any(torch.equal(image, t) for t in train.images) for image in result.nearest)
    assert calls[-1] == ("done", 2 * 16 * 2, 2 * 16 * 2)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_copies_of_training_images_are_found():
    train, held_out = pictures(60, 1), pictures(60, 0)
    pixels = orn.data.to_unit(train.images)
    memory = model(lambda x, log_snr, label: pixels[: len(x)])
    result = evaluate_model(memory, dataclasses.replace(QUICK, batch=16), held_out, train, open_features("pixels"))
    assert result.copies is not None and result.copies.duplicates == 16 and result.copies.close_share == 1
    assert float(result.distances.max()) == 0
    table = tables(result, "about")[-1]
    assert table.title == "Copies of training images" and ("exact copies", 16, 0) in table.rows
    unknown = evaluate_model(memory, QUICK, held_out, None, open_features("pixels"))
    assert unknown.copies is None and unknown.floor is None
    assert [table.title for table in tables(unknown, "about")] == ["Quality of samples"]


def test_figures_do_not_depend_on_the_batch_and_do_on_the_seed():
    noisy = model(lambda x, log_snr, label: x.tanh())
    held_out = pictures(20, 0)
    a, b = (
        evaluate_model(noisy, dataclasses.replace(QUICK, batch=batch), held_out, None, open_features("pixels"))
        for batch in (16, 5)
    )
    assert a.rows[0].frechet.values == pytest.approx(b.rows[0].frechet.values, rel=1e-9)
    assert a.rows[0].frechet.values[0] != a.rows[0].frechet.values[1]
    assert a.rows[0].frechet.std == pytest.approx(
        abs(a.rows[0].frechet.values[0] - a.rows[0].frechet.values[1]) / 2**0.5
    )


def test_known_results_are_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "STEPS", 3)
    d, held_out, train = model(lambda x, log_snr, label: x.tanh()), pictures(20, 0), pictures(30, 1)
    plan = dataclasses.replace(QUICK, solvers=("ddim", "heun"), methods=("vlb",), images=4)

    def evaluated(seeds, kept=None, pixels=held_out):
        d.net.labels.clear()
        own = dataclasses.replace(plan, seeds=seeds)
        result = evaluate_model(d, own, pixels, train, open_features("pixels"), pieces=kept and Pieces(*kept))
        return result, len(d.net.labels)

    whole, calls = evaluated(2)
    one, first = evaluated(1, (tmp_path, {"model": 1}))
    two, second = evaluated(2, (tmp_path, {"model": 1}))
    assert 0 < second < first < calls  # the other seed alone, and no likelihood
    assert two.to_json() == whole.to_json()
    assert torch.equal(two.samples, whole.samples) and torch.equal(two.nearest, whole.nearest)
    assert evaluated(2, (tmp_path, {"model": 1}))[1] == 0
    # of another model nothing is known
    assert evaluated(1, (tmp_path, {"model": 2}))[1] == first
    # pictures that are lost, or those of other settings, are made again, and they alone
    (tmp_path / "pieces.safetensors").write_bytes(b"damaged")
    again, made = evaluated(1, (tmp_path, {"model": 2}))
    assert 0 < made < first and torch.equal(again.samples, one.samples)
    # a file of pieces that was damaged is none
    (tmp_path / "pieces.json").write_text("{")
    assert evaluated(1, (tmp_path, {"model": 2}))[1] == first


def test_samples_are_of_the_classes_of_the_real_images():
    labels = torch.tensor([0, 0, 0, 1] * 5)
    held_out = pictures(20, 0, labels=labels, classes=("dog", "cat"))
    d = model(classes=("cat", "dog", "horse"))  # another order: classes go by name
    evaluate_model(d, dataclasses.replace(QUICK, count=20, batch=20, seeds=1), held_out, None, open_features("pixels"))
    requested = d.net.labels[0]
    assert torch.equal(requested.bincount(minlength=3), torch.tensor([5, 15, 0]))
    assert torch.equal(class_numbers(held_out, d.data), 1 - labels)
    # a class that the model has not: each of its own in turn, and likelihoods without
    foreign = pictures(20, 0, labels=labels, classes=("dog", "zebra"))
    assert class_numbers(foreign, d.data) is None
    evaluate_model(d, dataclasses.replace(QUICK, count=9, batch=9, seeds=1), foreign, None, open_features("pixels"))
    assert torch.equal(d.net.labels[-1], torch.arange(9) % 3)


def test_bits_of_a_model_that_predicts_the_pixels():
    """The grey model on grey images: no information in any step, and rounding at t = 1/1000 gives 8-bit grey."""
    grey = torch.full((3, *SHAPE), 128, dtype=torch.uint8)
    exact = float(orn.data.to_unit(grey[:1])[0, 0, 0, 0])
    d = model(lambda x, log_snr, label: torch.full_like(x, exact))
    for method in ("vlb", "continuous"):
        bits = bits_of_images(d, grey, method)
        assert bits.mean == pytest.approx(sum(bits.parts.values()), abs=1e-9)
        assert abs(bits.parts["diffusion"]) < 1e-6 and abs(bits.parts["prior"]) < 1e-3
        assert bits.count == 3 and bits.error < 1e-6
    with pytest.raises(ValueError, match="unknown likelihood 'elbo'; known: vlb"):
        bits_of_images(d, grey, "elbo")


def test_bits_by_the_flow_of_a_normal_density():
    """The exact denoiser of N(0, I): each grey pixel has log2(sqrt(2 pi)) bits, and 7 for its bin of width 2/256."""
    d = model(normal_density)
    grey, done = torch.full((2, *SHAPE), 128, dtype=torch.uint8), []
    flow = bits_of_images(d, grey[:1], "ode", advance=done.append)
    assert flow.mean == pytest.approx(math.log2(math.sqrt(2 * math.pi)) + 7, abs=3e-3)
    assert done == [1] and math.isnan(flow.error) and flow.count == 1 and flow.parts == {}


def test_the_flow_of_a_model_without_width_ends(monkeypatch):
    """All samples are one picture: the density of any other one is zero, and its path never ends."""
    monkeypatch.setattr(streaming, "_MOST_CALLS", 40)
    with pytest.raises(ValueError, match="took more than 40 evaluations of the network"):
        bits_of_images(model(), pictures(2, 0).images, "ode")


def test_a_flow_that_cannot_be_followed_is_named_and_the_samples_are_scored(monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("the ODE took too many steps")

    monkeypatch.setattr(importlib.import_module("ornstein.evaluation.measure"), "bits_of_images", fails)
    plan = dataclasses.replace(QUICK, methods=("ode",))
    result = evaluate_model(model(), plan, pictures(20, 0), None, open_features("pixels"))
    assert result.bits == () and result.left_out == ("likelihood, ode: the ODE took too many steps",)
    assert len(result.rows) == 1


def test_a_dequantiser_is_fitted_to_the_training_images(monkeypatch):
    monkeypatch.setattr("ornstein.evaluation.measure.FIT_STEPS", 3)
    plan = dataclasses.replace(QUICK, seeds=1, methods=("ode", "ode-variational"), images=9)
    seen = []
    d = model(normal_density)
    result = evaluate_model(
        d, plan, pictures(20, 0), pictures(30, 1), open_features("pixels"), lambda *now: seen.append(now)
    )
    uniform, fitted = result.bits
    assert (uniform.method, fitted.method) == ("ode", "ode-variational")
    assert "fitted to training images" in fitted.meaning and fitted.count == 9
    assert fitted.mean == pytest.approx(uniform.mean, abs=0.1) and fitted.mean != uniform.mean
    assert "dequantiser" in [what for what, _, _ in seen]
    done = [done for _, done, _ in seen]
    assert done == sorted(done) and max(done) <= seen[-1][2]
    with pytest.raises(UserError, match="ode-variational is fitted to the training images, which were not found"):
        evaluate_model(model(), plan, pictures(20, 0), None, open_features("pixels"))
    with pytest.raises(ValueError, match="ode-variational needs a dequantiser"):
        bits_of_images(model(), pictures(2, 0).images, "ode-variational")


@pytest.mark.parametrize("method", ["vlb", "continuous", "ode"])
def test_bits_do_not_depend_on_the_batch(method, monkeypatch):
    rows = []

    def seen(x, log_snr, label):
        rows.append(len(x))
        return normal_density(x, log_snr, label) if method == "ode" else 0.5 * torch.tanh(x)

    shape = (1, 2, 2)
    monkeypatch.setattr(streaming, "STEPS", 50)
    monkeypatch.setattr(streaming, "LEVELS", 10)
    d, images = model(seen, shape=shape).double(), pictures(300, 0, shape).images
    whole = bits_of_images(d, images, method)
    assert whole.count == 300 and max(rows) <= 256 and sum(rows) >= 300
    monkeypatch.setattr(streaming, "_BATCH", 7)
    again = bits_of_images(d, images, method)
    assert again.mean == pytest.approx(whole.mean, rel=1e-7)
    assert again.error == pytest.approx(whole.error, rel=1e-5)


def test_json_has_every_figure_and_null_for_no_number():
    plan = dataclasses.replace(QUICK, seeds=1, methods=("continuous",), images=1)
    result = evaluate_model(model(), plan, pictures(20, 0), None, open_features("conv"))
    read = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert read["quality"][0]["frechet"]["std"] is None
    assert read["quality"][0]["frechet"]["mean"] == result.rows[0].frechet.mean
    assert read["likelihood"][0]["method"] == "continuous" and read["likelihood"][0]["error"] is None
    assert read["features"].startswith("conv (") and read["seeds"] == [0] and read["copies"] is None
    header = tables(result, "about these images")[1].header
    for word in ("16 samples", "seed 0", "16 real images", "conv (", "about these images"):
        assert word in header
    assert Spread((1.0, 3.0)).mean == 2 and Spread((1.0, 3.0)).std == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solvers": ("magic",)}, "unknown solver 'magic'; known: .*ddim"),
        ({"solvers": ()}, "at least one of --solvers"),
        ({"steps": (5, 0)}, "--steps must be at least 1, got 0"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"images": -1}, "--images must be at least 1, got -1"),
        ({"batch": 0}, "--batch must be at least 1, got 0"),
        ({"count": 7}, "-n must be at least 8 samples, got 7"),
        ({"methods": ("elbo",)}, "unknown --likelihood 'elbo'; known: vlb"),
    ],
)
def test_a_wrong_plan_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Plan(**change)


def test_images_of_another_shape_are_refused_with_both_shapes():
    pixels = open_features("pixels")
    with pytest.raises(UserError, match=r"set0 has images of 3x8x8 .* the model makes 1x4x4"):
        evaluate_model(model(), QUICK, pictures(20, 0, (3, 8, 8)), None, pixels)
    with pytest.raises(UserError, match=r"set1 has images of 3x4x4 .* the model makes 1x4x4"):
        evaluate_model(model(), QUICK, pictures(20, 0), pictures(20, 1, (3, 4, 4)), pixels)
    with pytest.raises(UserError, match="only models of images can be evaluated: this one makes clips 1x3x4x4"):
        evaluate_model(model(shape=(1, 3, 4, 4)), QUICK, pictures(20, 0), None, pixels)
    with pytest.raises(UserError, match="set0 leaves 7 images to evaluate on: at least 8"):
        evaluate_model(model(), QUICK, pictures(7, 0), None, pixels)


def test_a_solver_that_diverges_is_named_with_its_time():
    d = model(lambda x, log_snr, label: torch.where(log_snr.view(-1, 1, 1, 1) > 0, torch.inf, torch.zeros_like(x)))
    with pytest.raises(ValueError, match=r"ddim with 2 steps: the solver diverged: .* at t = \d"):
        evaluate_model(d, QUICK, pictures(20, 0), None, open_features("pixels"))


def test_what_does_not_fit_before_the_deadline_is_left_out_and_named():
    plan = dataclasses.replace(QUICK, solvers=("ddim", "heun"), steps=(2, 1), methods=("continuous",), images=40)
    held_out = pictures(40, 0)
    late = evaluate_model(model(), plan, held_out, None, open_features("pixels"), deadline=time.monotonic() - 1)
    # a first set of samples is always made: the pictures are of it
    assert [(row.solver, row.steps, len(row.frechet.values)) for row in late.rows] == [("ddim", 2, 1)]
    assert late.bits == () and "likelihood, continuous" in late.left_out and len(late.left_out) == 8
    assert "heun, 1 steps, seed 1" in late.left_out and "ddim, 2 steps, seed 1" in late.left_out
    assert late.to_json()["left_out"] == list(late.left_out)
    whole = evaluate_model(model(), plan, held_out, None, open_features("pixels"), deadline=time.monotonic() + 600)
    assert whole.left_out == () and len(whole.rows) == 4 and whole.bits[0].count == 40


def test_a_likelihood_that_is_stopped_is_of_the_images_that_are_done():
    answers = iter([False, True])
    images = pictures(100, 0).images
    part = bits_of_images(model(), images, "continuous", stop=lambda: next(answers))
    assert part.count == 64  # two batches
    assert part.mean == pytest.approx(bits_of_images(model(), images[:64], "continuous").mean, rel=1e-9)


def test_the_precision_reaches_the_samples_alone(monkeypatch):
    dtypes = []
    measure = importlib.import_module("ornstein.evaluation.measure")

    def spy(*arguments, precision=None, **options):
        dtypes.append(precision)
        return orn.sample(*arguments, **options)

    monkeypatch.setattr(measure, "sample", spy)
    evaluate_model(model(), QUICK, pictures(20, 0), None, open_features("pixels"), precision=torch.bfloat16)
    assert set(dtypes) == {torch.bfloat16}
