"""A denoiser with a text encoder: trained on captions, sampled by prompts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ornstein.text.encoders import FrozenEncoder
from ornstein.text.own import TextEncoder
from ornstein.text.prompting import Prompting

__all__ = ["TextDenoiser"]


class TextDenoiser(Prompting):
    """A denoiser whose network takes `text`, with the encoder that makes it of prompts.

    Besides `text` and `text_mask` an encoder of one's own takes the condition `tokens` (B, L), -1 for none: it is a
    part of the model, trained with it and stored with it. A frozen encoder is neither.

    Args:
        encoder: `TextEncoder` or `FrozenEncoder`.
        examples: some captions of the training, for previews.
        others: arguments of `Denoiser`.
    """

    def __init__(
        self, *others: Any, encoder: TextEncoder | FrozenEncoder, examples: tuple[str, ...] = (), **more: Any
    ) -> None:
        super().__init__(*others, **more)
        self.encoder = encoder
        self.examples = examples

    @property
    def weights(self) -> nn.Module:
        """What is stored: the network, and with it an encoder of one's own."""
        own = self.encoder
        return nn.ModuleDict({"net": self.net, "text": own}) if isinstance(own, TextEncoder) else self.net

    @property
    def trains_text(self) -> bool:
        """Whether the encoder is trained along with the network."""
        return isinstance(self.encoder, TextEncoder)

    def add_word(self, word: str, given: Tensor | None, initial: str, count: int) -> None:
        """Give the encoder a word; see `TextEncoder.add_word`."""
        self.encoder.add_word(word, given, initial, count)
        if self.encoder.new is not None:
            self.encoder.new.to(next(self.net.parameters()).device)  # of a frozen encoder too: what trains it has it

    def in_turn(self, count: int) -> dict[str, Any]:
        """The conditions of so many samples, the examples in turn: those of previews."""
        if not self.examples or self._rows is not None:
            return {}
        return self.encode([self.examples[i % len(self.examples)] for i in range(count)])

    def to_config(self) -> dict[str, Any]:
        return super().to_config() | {"text": self.encoder.to_config() | {"examples": list(self.examples)}}

    def _output(self, x_t: Tensor, t: Any, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        cond = dict(self._of_label(cond, len(x_t), x_t.device))
        tokens = cond.pop("tokens", None)
        if tokens is not None:
            assert isinstance(self.encoder, TextEncoder)
            cond["text"], cond["text_mask"] = self.encoder(tokens.to(x_t.device, non_blocking=True))
        return super()._output(x_t, t, cond)

    def _encoded(self, texts: list[str]) -> dict[str, Tensor]:
        text, mask = self.encoder.encode(texts)
        return {"text": text, "text_mask": mask}
