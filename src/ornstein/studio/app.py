"""The web page: its tabs and its style. Nothing is loaded from other servers."""

from __future__ import annotations

import traceback
from typing import Any

import gradio as gr
from gradio import themes
from gradio.exceptions import Error as AppError

from ornstein.studio import edit, evaluate, generate, lab, personalize, swap, train
from ornstein.studio.studio import Studio
from ornstein.studio.work import shown

__all__ = ["STYLE", "build", "theme"]

_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

STYLE = """
.gradio-container { width: 100% !important; max-width: min(1280px, 100vw) !important; box-sizing: border-box;
  margin: 0 auto !important; padding: 0 16px 32px !important; }
.gradio-container main, .gradio-container .wrap, .gradio-container .column, .gradio-container .tabs { min-width: 0; }
.html-container { padding: 0 !important; }
.masthead { display: flex; align-items: baseline; gap: 14px; padding: 18px 2px 6px; flex-wrap: wrap; }
.masthead h1 { font-size: 22px; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
.masthead span { color: var(--body-text-color-subdued); font-size: 14px; }
.progress, .note { font-size: 14px; line-height: 1.4; padding: 8px 12px; border-radius: 8px; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); color: var(--body-text-color);
  font-variant-numeric: tabular-nums; }
.note.good { border-left: 3px solid #2a9d6f; }
.note.bad { border-left: 3px solid #c8402f; }
.track { height: 4px; border-radius: 2px; overflow: hidden; margin-bottom: 7px;
  background: var(--border-color-primary); }
.track .done { height: 100%; background: var(--color-accent); transition: width 0.25s linear; }
.track .going { height: 100%; width: 30%; background: var(--color-accent);
  animation: going 1.4s ease-in-out infinite; }
.wide { overflow-x: auto; }
@keyframes going { from { margin-left: -30%; } to { margin-left: 100%; } }
@media (prefers-reduced-motion: reduce) { .track .going { animation: none; } }
table.facts { width: 100%; border-collapse: collapse; font-size: 14px; border: 0 !important; }
table.facts tr, table.facts thead, table.facts tbody { border: 0 !important; }
table.facts th, table.facts td { text-align: left; padding: 5px 10px 5px 0 !important; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere; }
table.facts th { font-weight: 500; color: var(--body-text-color-subdued); width: 9em; }
/* Galleries show all their rows. */
.gallery-all .grid-wrap { min-height: 0 !important; max-height: none !important; height: auto !important;
  overflow: visible !important; }
.block input { text-overflow: ellipsis; }
.gallery-all, .gallery-all .gallery-container { height: auto !important; max-height: none !important; }
/* Labels of galleries and files in whole, not cut off. */
.block label.float, .block > label { max-width: 100%; white-space: normal; }
#samples img, #answers img, #edit-spread img, #previews img, #personal-previews img, #film img,
#ranked img { image-rendering: pixelated; }
iframe.report { width: 100%; height: 70vh; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: white; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container, .gradio-container .app { padding: 0 4px 24px !important; }
  .gallery-all .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  .masthead { padding-top: 10px; }
}
"""

_HEAD = """<div class="masthead"><h1>Ornstein studio</h1>
<span>diffusion models with any covariance, on this computer</span></div>"""


def theme() -> themes.Base:
    """Colours and the system's own fonts, so that none are downloaded."""
    return themes.Default(
        primary_hue=themes.colors.blue, neutral_hue=themes.colors.slate, font=_SANS, font_mono=_MONO
    ).set(block_border_width="1px", block_shadow="none", block_label_background_fill="*background_fill_primary")


class _Blocks(gr.Blocks):
    """A page whose every error is a sentence, those of malformed requests included."""

    async def process_api(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().process_api(*args, **options)
        except AppError:
            raise
        except Exception as error:
            traceback.print_exc()
            raise shown(error) from error


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio, with all tabs."""
    with _Blocks(title="Ornstein studio", analytics_enabled=False) as blocks:
        gr.HTML(_HEAD)
        with gr.Tabs():
            with gr.Tab("Train", id="train"):
                train.page(studio, blocks)
            with gr.Tab("Generate", id="generate"):
                generate.page(studio)
            with gr.Tab("Edit", id="edit"):
                edit.page(studio)
            with gr.Tab("Personalise", id="personalize"):
                personalize.page(studio)
            with gr.Tab("Video & noise lab", id="lab"):
                lab.page(studio)
            with gr.Tab("Face swap", id="swap"):
                swap.page(studio)
            with gr.Tab("Likelihood & evaluation", id="evaluate"):
                evaluate.page(studio)
        studio.wire(blocks)
    return blocks
