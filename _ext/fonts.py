"""Fonts of the few characters that the book shows, inside the style sheets that use them."""

import base64
import io
from collections.abc import Collection
from pathlib import Path

from fontTools import subset, ttLib


def embed(path: Path, codes: Collection[int]) -> str:
    """Return what a style sheet calls a font: that of a file, reduced to some code points.

    A font with none of them stays whole: a browser refuses one without characters.
    """
    font, small = ttLib.TTFont(path), io.BytesIO()
    options = subset.Options(hinting=False)
    options.drop_tables += ["FFTM"]  # when it was made
    subsetter = subset.Subsetter(options)
    there = font.getBestCmap().keys()
    subsetter.populate(unicodes=codes & there or there)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(small)
    data = base64.b64encode(small.getvalue()).decode()
    return f'url(data:font/woff;base64,{data}) format("woff")'
