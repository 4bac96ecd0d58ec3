"""What the pages share: runs, trainings, sessions, menus of runs, and the queue for long work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch

from ornstein.devices import choose_precision
from ornstein.studio.runs import CLIPS, FACES, Runs
from ornstein.studio.sessions import Sessions
from ornstein.studio.trainings import Trainings

if TYPE_CHECKING:
    from ornstein.faces.detect import FaceDetector
    from ornstein.faces.recognise import FaceRecogniser


__all__ = ["Studio", "gallery"]


def gallery(label: str, columns: int, name: str, download: bool = False) -> gr.Gallery:
    """A gallery of pictures with the id `name`, as high as its rows."""
    return gr.Gallery(
        label=label,
        columns=columns,
        object_fit="contain",
        elem_id=name,
        elem_classes="gallery-all",
        format="png",
        buttons=["download", "fullscreen"] if download else ["fullscreen"],
    )


def _about(kinds: Sequence[str], names: Sequence[object]) -> str:
    if names:
        return "A trained run."
    if FACES in kinds:
        return "None yet: `ornstein faces demo` or `ornstein faces train` makes one; this page cannot train it."
    if CLIPS in kinds and len(kinds) == 1:
        return "None yet: on the page Train, give frames per clip and videos."
    return "None yet: train one on the page Train."


class Studio:
    """The studio over a folder of runs.

    Args:
        home: the folder of runs, where new ones are written.
        cache: the folder of uploads and results of open pages.
        given: further runs.
        detector, recogniser: of faces; None is dlib's.
        device: where models go; None is the best there is.
        precision: of networks, one of `ornstein.devices.PRECISIONS`.
    """

    # Long work: one at a time; the others wait in order, and none is refused.
    long: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": 1, "show_progress": "hidden"}  # noqa: RUF012

    def __init__(
        self,
        home: Path,
        cache: Path,
        given: Sequence[Path] = (),
        detector: FaceDetector | None = None,
        recogniser: FaceRecogniser | None = None,
        device: torch.device | None = None,
        precision: str = "auto",
    ) -> None:
        self.runs = Runs(home, given, device)
        self.precision = precision
        self.dtype = choose_precision(precision, self.runs.device)
        self.trainings = Trainings(home, str(self.runs.device))
        self.sessions = Sessions(cache)
        self.detector, self.recogniser = detector, recogniser
        self._loads: list[tuple[Callable[..., Any], gr.Dropdown, list[Any]]] = []
        self._choosers: list[tuple[gr.Dropdown, tuple[str, ...]]] = []

    def chooser(self, *kinds: str, label: str = "Model") -> gr.Dropdown:
        """A menu of the runs of these kinds, updated when a page is opened."""
        names = self.runs.of(*kinds)
        menu = gr.Dropdown(
            names, value=names[0][1] if names else None, label=label, info=_about(kinds, names), allow_custom_value=True
        )
        self._choosers.append((menu, kinds))
        return menu

    def refreshed(self, chosen: Sequence[str | None]) -> list[Any]:
        """The menus of runs as they are now; a choice stays if its run is still there."""
        out = []
        for (_, kinds), value in zip(self._choosers, chosen, strict=True):
            names = self.runs.of(*kinds)
            paths = [path for _, path in names]
            chosen_now = value if value in paths else next(iter(paths), None)
            out.append(gr.update(choices=names, value=chosen_now, info=_about(kinds, names)))
        return out

    def on_load(self, handler: Callable[..., Any], menu: gr.Dropdown, outputs: list[Any]) -> None:
        """Call the handler with the chosen run, if there is one, whenever a page is opened."""
        self._loads.append((handler, menu, outputs))

    def on_stop(self, button: gr.Button) -> None:
        """The button stops all work of its page."""

        def stop(request: gr.Request) -> None:
            self.sessions.of(request).stop()

        button.click(stop, None, None, queue=False, api_visibility="private", show_progress="hidden")

    def sent(self, component: Any) -> None:
        """Delete files uploaded by this component when the page is closed, whether or not they were used."""

        def keep(value: Any, request: gr.Request) -> None:
            self.sessions.send(request, value if isinstance(value, list) else [value])

        component.upload(keep, component, None, queue=False, api_visibility="private", show_progress="hidden")

    def wire(self, blocks: gr.Blocks) -> None:
        """Connect the events of opening and closing a page."""
        menus = [menu for menu, _ in self._choosers]

        def opened(*chosen: str | None) -> list[Any]:
            return self.refreshed(chosen)

        first = blocks.load(
            opened, menus, menus, queue=False, api_visibility="private", show_progress="hidden"
        )  # fmt: skip
        for handler, menu, outputs in self._loads:

            def guarded(name: str | None, handler: Callable[..., Any] = handler, count: int = len(outputs)) -> Any:
                return handler(name) if name else [gr.skip()] * count

            first = first.then(
                guarded, menu, outputs, queue=False, api_visibility="private", show_progress="hidden"
            )  # fmt: skip

        def closed(request: gr.Request) -> None:
            self.sessions.close(request)

        blocks.unload(closed)
