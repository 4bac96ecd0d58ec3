"""Personalisation: a model of text learns a person, thing or style from a few pictures.

`recipe.personalize` is `orn.personalize` and what `ornstein personalize` does.
"""

__all__: list[str] = []
