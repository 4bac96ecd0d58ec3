import torch

from ornstein.faces.provenance.card import read_card
from ornstein.faces.swap.sampling import FaceModel
from ornstein.faces.world.demo import demo


def test_a_demo_leaves_a_model_scores_and_a_report(tmp_path):
    stages, random = [], torch.get_rng_state()
    settings = {"minutes": 0.04, "size": 32, "people": 2, "photos": 64, "frames": 2}
    done = demo(tmp_path, **settings, tell=lambda stage, fraction: stages.append((stage, fraction)))
    assert torch.equal(torch.get_rng_state(), random)  # that of the caller
    assert set(done.scores) == {"swap", "target as it is", "source pasted", "truth, 8-bit noise"}
    page = done.report.read_text()
    assert all(word in page for word in ("source pasted", "PSNR", "top-1", "Clips"))
    assert (tmp_path / "clip.mp4").stat().st_size > 1000 and (tmp_path / "swaps.png").exists()
    assert FaceModel.load(tmp_path).size == 32 and "rendered" in read_card(tmp_path).data
    assert [stage for stage, _ in stages].index("evaluating") > [stage for stage, _ in stages].index(
        "training the swap"
    )
    # called again it trains no more
    again = demo(tmp_path, **settings)
    assert again.scores["swap"] == done.scores["swap"]
    # and with more minutes it goes on, with the recogniser that the swap knows
    recogniser, curve = (tmp_path / "recogniser" / "identity.safetensors").read_bytes(), tmp_path / "metrics.jsonl"
    steps = len(curve.read_text().splitlines())
    demo(tmp_path, **settings | {"minutes": 0.08})
    assert (tmp_path / "recogniser" / "identity.safetensors").read_bytes() == recogniser
    assert len(curve.read_text().splitlines()) > steps
