"""Seeds from named axes: arms share data and differ only where they should."""

from __future__ import annotations

import hashlib

TUNING_OFFSET = 1_000_000


def seed_for(axis: str, *parts: int | str) -> int:
    """A 63-bit seed that depends on the name of what is drawn and on ``parts``, and on nothing else.

    ``seed_for("data", seed)`` is the same in every arm of a cell; ``seed_for("init", seed, arm)`` is not.
    """
    text = "\x1f".join([axis, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
