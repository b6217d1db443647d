"""Numbers as people read them: three significant digits, a real minus sign, no bare exponents."""

from math import floor, isfinite, isinf, log10

MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NO_ESTIMATE = "no estimate"

# Outside this range a power of ten reads better than zeros.
SMALLEST, LARGEST = 1e-3, 1e5
# However narrow its interval, a number shows at most this many significant digits.
MOST_DIGITS = 6


def number(value: float | None) -> str:
    """A number with three significant digits; an en dash where there is none."""
    if value is None or value != value:
        return "\N{EN DASH}"
    if isinf(value):
        return f"{MINUS}∞" if value < 0 else "∞"
    rounded = float(f"{value:.3g}")
    if rounded == 0:
        return "0"
    exponent = _exponent(rounded)
    if not SMALLEST <= abs(rounded) < LARGEST:
        return f"{_fixed(rounded / 10.0**exponent, 2)}{_power(exponent)}"
    return _fixed(rounded, 2 - exponent)


def interval(effect: float | None, low: float | None, high: float | None) -> str:
    """`0.012 [0.004, 0.020]`: the interval's width decides how many decimals all three have."""
    if effect is None or not isfinite(effect):
        return NO_ESTIMATE
    if low is None or high is None:
        return number(effect)
    if not (isfinite(low) and isfinite(high)) or high <= low:
        return f"{number(effect)} [{number(low)}, {number(high)}]"
    exponent = _exponent(max(abs(effect), abs(low), abs(high)))
    decimals = min(1 - _exponent(high - low), MOST_DIGITS - 1 - exponent)
    if SMALLEST <= 10.0**exponent < LARGEST:
        return f"{_fixed(effect, decimals)} [{_fixed(low, decimals)}, {_fixed(high, decimals)}]"
    effect, low, high = (v / 10.0**exponent for v in (effect, low, high))
    decimals += exponent
    inner = f"{_fixed(effect, decimals)} [{_fixed(low, decimals)}, {_fixed(high, decimals)}]"
    return f"({inner}){_power(exponent)}"


def label(value: object) -> str:
    """The name of a series or a category: text as it is, numbers without needless zeros."""
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", MINUS)
    return str(value)


def _exponent(value: float) -> int:
    return floor(log10(abs(value)))


def _power(exponent: int) -> str:
    return f"×10{str(exponent).translate(SUPERSCRIPTS)}"


def _fixed(value: float, decimals: int) -> str:
    text = f"{round(value, decimals):,.{max(decimals, 0)}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # what rounds to zero has no sign
    return text.replace("-", MINUS)
