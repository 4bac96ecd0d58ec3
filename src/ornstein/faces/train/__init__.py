"""Training of a face swap on photographs: prepared sets, the training objective, runs and their evaluation."""

__all__: list[str] = []
