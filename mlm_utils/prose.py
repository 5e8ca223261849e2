"""Figures in the prose: inserted from a computation, never typed."""

import math
import sys
from numbers import Real

PREFIX = "application/papermill.record/"


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
    Written as ``myst_nb.glue`` writes them, without importing it: with its validators that
    takes longer than all else a page imports. Outside a notebook there is nothing to insert into:
    the figures are checked, and that is all.
    """
    for name, value in figures.items():
        if isinstance(value, str):
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"figure {name!r} must be a number or text, got {value!r}: use float()")
        if not math.isfinite(value):
            raise ValueError(f"figure {name!r} is {value}: look at the computation behind it")
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    for name, value in figures.items() if shell else ():
        shown = repr(value if isinstance(value, str) else float(value))
        record = {"name": name, "mime_prefix": PREFIX}
        shell.display_pub.publish({f"{PREFIX}text/plain": shown}, {"scrapbook": record})
