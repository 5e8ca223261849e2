"""Fonts of the few characters that the book shows, inside the style sheets that use them."""

import base64
import io
from collections.abc import Collection
from pathlib import Path

from fontTools import subset, ttLib


def embed(path: Path, codes: Collection[int] | None = None) -> str:
    """Return what a style sheet calls a font: that of a file, whole or reduced to some code points.

    It is empty if the font has none of them: a browser refuses one without characters.
    """
    font, small = ttLib.TTFont(path), io.BytesIO()
    options = subset.Options(hinting=False)
    options.drop_tables += ["FFTM"]  # when it was made
    subsetter = subset.Subsetter(options)
    there = font.getBestCmap().keys()
    kept = there if codes is None else codes & there
    if not kept:
        return ""
    subsetter.populate(unicodes=kept)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(small)
    data = base64.b64encode(small.getvalue()).decode()
    return f'url(data:font/woff;base64,{data}) format("woff")'
