"""`make gpu` on this machine's CPU, on little: that each part runs, is kept, and gets into the page."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu as benchmark


def test_parts_are_measured_once_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(f"before\n\n{benchmark.BEGIN}\nold\n{benchmark.END}\n\nafter\n")
    little = ["--parts", "training,sampling", "--cases", "unet:xs,8,4", "--seconds", "0.1", "--steps", "1"]
    little += ["--no-compile", "--precisions", "float32", "--device", "cpu", "--out", str(tmp_path / "kept")]
    benchmark.main([*little, "--write", str(page)])
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "### Training" in text and "### Sampling" in text and "| unet:xs | 8 | 4 | float32 |" in text
    (row,) = json.loads((tmp_path / "kept" / "training.json").read_text())["tables"][0]["rows"]
    assert float(row[4]) > 0
    monkeypatch.setitem(benchmark.PARTS, "training", lambda *_: pytest.fail("measured again"))
    benchmark.main(little)
    with pytest.raises(SystemExit):
        benchmark.main(["--parts", "nothing", "--out", str(tmp_path / "kept")])
