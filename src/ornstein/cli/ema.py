"""`ornstein ema`: the average of a run's weights, of any width, after the training."""

from __future__ import annotations

import shutil

from ornstein import checkpoint
from ornstein.cli.commands import Ema
from ornstein.errors import UserError
from ornstein.progress import say, warn
from ornstein.store import CONFIG, make_folder, read_config, write_error
from ornstein.training import lock
from ornstein.training.averages import reconstruct
from ornstein.training.settings import SETTINGS
from ornstein.training.state import check_new

__all__ = ["ema"]

_APART = 0.1  # a difference of the profiles from which on the width is hardly the one that was asked for


def ema(asked: Ema, given: frozenset[str]) -> None:
    """Write the run's model with weights averaged over another width."""
    out = asked.run if asked.out is None or asked.out.resolve() == asked.run.resolve() else asked.out
    if out != asked.run:
        check_new(out)
    config = read_config(asked.run)
    if "autoencoder" in config:
        raise UserError(f"{asked.run} is an autoencoder: --ema post-hoc is for diffusion models")
    make_folder(out)
    taken = lock.hold(out)  # a training that goes on would write its own model there
    try:
        model = checkpoint.load(asked.run, trust_sizes=asked.trust_sizes)
        tensors, step, apart = reconstruct(asked.run, asked.width)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            what = str(error).splitlines()[-1].strip()
            raise UserError(f"the averages of {asked.run} are not of its model: {what}") from None
        others = {name: value for name, value in config.items() if name not in model.to_config()}
        others["training"] = others.get("training", {}) | {"ema_width": asked.width, "step": step}
        if out != asked.run and (asked.run / SETTINGS).is_file():
            try:
                shutil.copyfile(asked.run / SETTINGS, out / SETTINGS)
            except OSError as error:
                raise write_error(out / SETTINGS, error) from error
        model.save(out, others)
    finally:
        if taken:
            lock.release(out)
    if apart > _APART:
        warn(f"the kept averages come only near to width {asked.width:g}: {apart:.0%} of its weight is elsewhere")
    say(f"{out / CONFIG}: average of width {asked.width:g} at step {step}, weights within {apart:.2%} of its profile")
