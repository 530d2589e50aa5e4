"""Clean renders of Unicode glyphs from the fonts that matplotlib ships, and the code points that look different."""

import hashlib
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

# every class has a glyph in each of these, so that faces are a nuisance and never a hint
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono",
    "STIXGeneral", "STIXGeneralItalic",
)  # fmt: skip
_KINDS = frozenset({"Lu", "Ll", "Lo", "Nd", "So", "Sm", "Sc", "Po", "Ps", "Pe", "Pd"})
LIMIT = 0.92  # two glyphs that correlate more in any face are one class
_POINTS = 64
_INK = 0.75  # longest side of the glyph's box over the side of the image


@cache
def render(code_point: int, face: str, side: int) -> Tensor:
    """The glyph alone, float32 [side, side] in 0..1: centred, the longest side of its box three quarters of the image.

    Size and place on the line are taken out, so that a comma and an apostrophe, or o and O, look alike.
    """
    font = _font(face)
    font.set_text(chr(code_point), 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = torch.tensor(np.asarray(font.get_image()), dtype=torch.float32) / 255
    rows, columns = (torch.nonzero(ink.amax(axis) > 0).flatten() for axis in (1, 0))
    if not len(rows):
        return torch.zeros(side, side)
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longest = max(ink.shape)
    height, width = (max(1, round(_INK * side * length / longest)) for length in ink.shape)
    small = interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    canvas = torch.zeros(side, side)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = small[0, 0].clamp(0, 1)
    return canvas


def renders(code_points: tuple[int, ...], side: int) -> Tensor:
    """Every code point in every face, float32 [code points, faces, side, side]."""
    return torch.stack([torch.stack([render(point, face, side) for face in FACES]) for point in code_points])


def candidates() -> list[int]:
    """Letters, digits, symbols and punctuation that all faces have; letters without a diacritic first."""
    shared = set.intersection(*(set(_font(face).get_charmap()) for face in FACES))
    kept = [point for point in shared if unicodedata.category(chr(point)) in _KINDS]
    return sorted(kept, key=lambda point: (unicodedata.decomposition(chr(point)) != "", _hash(point)))


def distinct(code_points: list[int], limit: float = LIMIT, side: int = 16) -> tuple[int, ...]:
    """Those of the code points that look unlike all that were kept before them, in the order of a hash.

    Two look alike when the correlation of their pixels is above `limit` in some face: a Latin, a Greek and a Cyrillic A
    are one class. In the order of a hash any slice is a random subset, over scripts and kinds.
    """
    flat = renders(tuple(code_points), side).flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    flat = flat / flat.norm(dim=2, keepdim=True).clamp_min(1e-6)
    kept: list[int] = []
    for index in range(len(code_points)):
        if not kept or torch.einsum("kfp,fp->kf", flat[kept], flat[index]).max() <= limit:
            kept.append(index)
    return tuple(sorted((code_points[index] for index in kept), key=_hash))


def _hash(code_point: int) -> bytes:
    return hashlib.sha256(f"U+{code_point:04X}".encode()).digest()


@cache
def _font(face: str) -> Any:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"))
    font.set_size(_POINTS, 72)
    return font
