"""The page of benchmarks: written from what was measured, and only from that."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import page
from tables import Table, number, ratio, turns, versions


def test_a_table_as_markdown() -> None:
    table = Table("Errors", ["steps", "error", "ratio"], note="Of what.")
    table.add(5, 0.123456, 1234.5)
    table.add("8", float("nan"), 0.5)
    assert table.markdown().splitlines() == [
        "### Errors", "", "Of what.", "", "| steps | error | ratio |", "|---|---|---|",
        "| 5 | 0.123 | 1234 |", "| 8 | - | 0.5 |",
    ]  # fmt: skip
    assert Table(**json.loads(json.dumps(table.to_config()))) == table
    assert number(float("inf")) == "-"


def test_the_page_holds_the_parts_that_there_are(tmp_path: Path) -> None:
    table = Table("A table", ["a"], [["1"]])
    record = {"date": "2026-01-02", "machine": "a machine", "versions": "torch 9", "tables": [table.to_config()]}
    (tmp_path / "noise-whole.json").write_text(json.dumps(record))
    text = page.page(tmp_path)
    assert "Measured on 2026-01-02: a machine; torch 9." in text and table.markdown() in text + "\n"
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Correlated noise against white"]
    other = record | {"date": "2026-01-03", "tables": [Table("Of a run", ["a"], [["2"]]).to_config()]}
    for name in ("solvers-run-a", "solvers-whole"):  # what is of no run first, each with its date
        (tmp_path / f"{name}.json").write_text(json.dumps(record if name.endswith("whole") else other))
    text = page.page(tmp_path)
    assert text.index("2026-01-02") < text.index("### Of a run") < text.index("2026-01-03")


def test_a_ratio_is_the_median_of_those_of_each_turn() -> None:
    assert ratio([[1.0, 2.0], [9.0, 3.0], [4.0, 4.0]], 0, 1) == 1.0
    calls: list[str] = []
    times = turns([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b"] * 3 and len(times) == 2 and all(t >= 0 for turn in times for t in turn)


def test_a_library_that_is_not_there_is_named() -> None:
    assert versions("no_such_library") == "no_such_library not installed"
