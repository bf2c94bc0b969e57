"""Pictures for pages: fewer pixels and colours than those for print."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def shrink(source: Path, target: Path, width: int) -> None:
    """A picture at most ``width`` pixels wide, of 256 colours, of which markers, though small, keep theirs."""
    with Image.open(source) as image:
        width = min(width, image.width)
        size = width, round(image.height * width / image.width)
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)
