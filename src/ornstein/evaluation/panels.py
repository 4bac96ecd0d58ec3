"""Pictures in rows: an image and its reconstruction, or one face under changing conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ornstein.evaluation.markup import checked, img, note, text

__all__ = ["Panel", "panel_section"]


@dataclass(frozen=True)
class Panel:
    """uint8 images (R, n, C, H, W): R rows of n, with names of columns and rows if given."""

    title: str
    caption: str
    pixels: Tensor
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()


def panel_section(panel: Panel) -> str:
    """The section of a panel in a report; every text in it is escaped.

    Raises:
        ValueError: images that are not uint8 (R, n, 1 or 3, H, W), or another number of names.
    """
    if panel.pixels.ndim != 5:
        raise ValueError(f"a panel is uint8 (R, n, C, H, W), got shape {tuple(panel.pixels.shape)}")
    rows, columns = panel.pixels.shape[:2]
    if (panel.columns and len(panel.columns) != columns) or (panel.rows and len(panel.rows) != rows):
        raise ValueError(
            f"{rows} rows of {columns} images need as many names, got {len(panel.rows)} and {len(panel.columns)}"
        )
    head = ""
    if panel.columns:
        corner = "<td></td>" if panel.rows else ""
        head = "".join(f'<th scope="col">{text(name)}</th>' for name in panel.columns)
        head = f"<thead><tr>{corner}{head}</tr></thead>"
    body = ""
    for i, images in enumerate(panel.pixels):
        name = panel.rows[i] if panel.rows else ""
        cells = f'<th scope="row">{text(name)}</th>' if panel.rows else ""
        for j, pixels in enumerate(checked(images, panel.title)):
            alt = ", ".join(word for word in (name, panel.columns[j] if panel.columns else "") if word)
            cells += f"<td>{img(pixels, text(alt or panel.title))}</td>"
        body += f"<tr>{cells}</tr>"
    return note(text(panel.caption)) + (
        f'<div class="card"><div class="scroll panel" tabindex="0" role="region" aria-label="{text(panel.title)}">'
        f"<table>{head}<tbody>{body}</tbody></table></div></div>"
    )
