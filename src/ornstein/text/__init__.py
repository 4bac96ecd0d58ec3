"""Text as a condition: tokens, encoders, and denoisers that take prompts."""

from ornstein.text.bpe import BPE as BPE
from ornstein.text.denoiser import TextDenoiser as TextDenoiser
from ornstein.text.encoders import FrozenEncoder as FrozenEncoder
from ornstein.text.encoders import open_encoder as open_encoder
from ornstein.text.own import TextEncoder as TextEncoder

__all__ = ["BPE", "FrozenEncoder", "TextDenoiser", "TextEncoder", "open_encoder"]
