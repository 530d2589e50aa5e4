"""Numbers as people read them: sensible digits, engineering prefixes; the exact value stays in the markup."""

from __future__ import annotations

import math
import re

from markupsafe import Markup

MINUS, NARROW = "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"
_DECIMAL = {-5: "f", -4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
BYTES = ("B", "bytes")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# Units that take a decimal prefix, with the factor that makes them a base unit.
_PREFIXED = {"ns": ("s", 1e-9), "us": ("s", 1e-6), "ms": ("s", 1e-3), "s": ("s", 1.0),
             "B/s": ("B/s", 1.0), "s/B": ("s/B", 1.0), "FLOP/s": ("FLOP/s", 1.0), "FLOP": ("FLOP", 1.0)}


def plain(value: float | None, digits: int = 3) -> str:
    """``value`` to ``digits`` significant digits, without exponent between 1e-4 and 1e6; ``–`` where there is none."""
    special = _special(value)
    if special is not None or value is None:
        return special or "–"
    if float(value).is_integer() and abs(value) < 1e6:
        return _sign(f"{int(value):d}" if abs(value) < 1e4 else f"{int(value):,}".replace(",", NARROW))
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return _sign(f"{value:,.{decimals}f}".replace(",", NARROW))
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return _sign(f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}")


def with_unit(value: float | None, unit: str = "", digits: int = 3) -> str:
    """``value`` with its unit: times and rates get engineering prefixes, bytes binary ones, ``×`` needs no space."""
    if value is None or _special(value) is not None:
        return plain(value)
    if unit in BYTES:
        return _bytes(value, digits)
    if unit in _PREFIXED:
        return _prefixed(value, *_PREFIXED[unit], digits)
    if unit in ("×", "%"):
        return plain(value, digits) + (unit if unit == "×" else NARROW + unit)
    return plain(value, digits) + (NARROW + unit if unit else "")


def tick(value: float, unit: str = "", digits: int = 6) -> str:
    """As :func:`with_unit` for round numbers such as thresholds and ticks: no trailing zeros."""
    return _trimmed(with_unit(value, unit, digits))


def digits_for(point: float, low: float, high: float) -> int:
    """Significant digits that show an interval: one digit of its half width, at least three and at most six in all."""
    half = (high - low) / 2
    if not (math.isfinite(point) and math.isfinite(half)) or half <= 0:
        return 3
    needed = math.floor(math.log10(max(abs(point), abs(low), abs(high)))) - math.floor(math.log10(half)) + 1
    return min(6, max(3, needed))


def binary_prefix(value: float) -> int:
    """The power of 1024 in which ``value`` bytes are shown."""
    prefix = 1
    while abs(value) >= 1024 * prefix and prefix < 1024 ** (len(_BINARY) - 1):
        prefix *= 1024
    return prefix


def axis_value(value: object) -> str:
    """One value of an axis: powers of two from 1024 read ``2¹⁰``, other numbers are plain, words stay."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and value >= 1024 and int(value) & (int(value) - 1) == 0:
        return "2" + str(int(value).bit_length() - 1).translate(_SUPERSCRIPT)
    return _trimmed(plain(value, 4))


def point_text(point: dict[str, object]) -> str:
    """A point of the axes: ``n = 2²⁰, threads = 1``."""
    return ", ".join(f"{name}{NARROW}={NARROW}{axis_value(value)}" for name, value in point.items())


def data(value: float | None, unit: str = "", digits: int = 3) -> Markup:
    """The number as a ``<data>`` element whose value is exact."""
    if value is None:
        return Markup("–")
    return Markup('<data value="{}">{}</data>').format(repr(value), with_unit(value, unit, digits))


def seconds_text(seconds: float) -> str:
    """A duration for people: ``850 ms``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return with_unit(seconds, "s", 2)
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _trimmed(text: str) -> str:
    return re.sub(r"(\.\d*?)0+(?=\D|$)", lambda found: found[1].rstrip("."), text)


def _special(value: float | None) -> str | None:
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    return None


def _sign(text: str) -> str:
    return text.replace("-", MINUS)


def _prefixed(value: float, unit: str, factor: float, digits: int) -> str:
    scaled = value * factor
    if scaled == 0:
        return f"0{NARROW}{unit}"
    step = min(5, max(-5, math.floor(math.log10(abs(scaled)) / 3 + 1e-12)))
    shown = float(f"{scaled / 1000.0**step:.{digits - 1}e}")
    if abs(shown) >= 1000 and step < 5:
        shown, step = shown / 1000, step + 1
    return plain(shown, digits) + NARROW + _DECIMAL[step] + unit


def _bytes(value: float, digits: int) -> str:
    prefix = binary_prefix(value)
    return plain(value / prefix, digits) + NARROW + _BINARY[(prefix.bit_length() - 1) // 10]
