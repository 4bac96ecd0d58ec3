"""What a launcher (`torchrun`, `accelerate launch`) says of this process, in the environment; it imports no torch."""

import os

__all__ = ["launched", "rank"]


def launched() -> int:
    """The number of processes of the launch; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process in the launch; 0 without a launcher."""
    return int(os.environ.get("RANK", "0")) if launched() > 1 else 0
