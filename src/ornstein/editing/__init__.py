"""Edits of picture files and clips of any size with a model of one: what `ornstein edit` and the studio call."""

from ornstein.editing.editor import Editor
from ornstein.editing.files import read_mask, read_picture, write_answers

__all__ = ["Editor", "read_mask", "read_picture", "write_answers"]
