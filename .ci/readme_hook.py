"""The README for a package index: links and pictures that are relative in a checkout become absolute."""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

REPOSITORY = "https://github.com/ornstein-contributors/ornstein"  # ORNSTEIN_REPOSITORY, where another one builds it


def absolute(text: str, repository: str) -> str:
    """The Markdown with each relative target of a picture as a raw file, of a link as a page of the repository."""

    def target(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({repository}/{kind}/main/{match[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)", target, text)


class ReadmeHook(MetadataHookInterface):
    """Sets `readme` of the metadata."""

    def update(self, metadata: dict) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("ORNSTEIN_REPOSITORY", REPOSITORY)
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository)}
