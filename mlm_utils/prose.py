"""Figures in the prose: inserted from a computation, never typed."""

import math
from numbers import Real


def insert(figures: dict) -> None:
    """Make figures available to the text of the page, for ``{glue:text}`` roles.

    Parameters
    ----------
    figures : dict
        Name -> number or text. ``{glue:text}`name:.1f``` shows the number to one decimal. What a
        clock measured is named ``timed_...``: these figures alone differ from build to build.

    Raises
    ------
    TypeError
        If a figure is neither a real number nor text.
    ValueError
        If a number is not finite.

    Notes
    -----
    Outside Jupyter Book (where ``myst_nb`` is not installed, say on Colab) there is no page
    to insert into: the figures are checked, and nothing else happens.
    """
    for name, value in figures.items():
        if isinstance(value, str):
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"figure {name!r} must be a number or text, got {value!r}: use float()")
        if not math.isfinite(value):
            raise ValueError(f"figure {name!r} is {value}: look at the computation behind it")
    try:
        from myst_nb import glue
    except ModuleNotFoundError:
        return
    for name, value in figures.items():
        glue(name, value if isinstance(value, str) else float(value), display=False)
