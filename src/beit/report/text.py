"""Text from outside, made safe to show: names of files and classes may hold anything."""

import math

_KEPT = "\u200d"  # joins emoji; harmless, and not "printable" to Python
_PERCENT_DIGITS = 1


def printable(text: str, *, keep: str = "") -> str:
    r"""Show control, direction-changing and undecodable characters as escapes (`\n`, `\udcff`).

    Such characters would break a line, reverse what a reader sees, drive a terminal, or fail to
    encode. Everything else, emoji included, stays as it is.

    Args:
        text: Any string, lone surrogates of undecodable file names included.
        keep: Characters to let through, such as a newline in a block of text.
    """
    return "".join(
        character
        if character.isprintable() or character in _KEPT or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shortened(name: str, longest: int) -> str:
    """Leave out the middle: names often begin alike."""
    if len(name) <= longest:
        return name
    tail = longest // 3
    return f"{name[: longest - 1 - tail].rstrip()}…{name[-tail:].lstrip()}"


def format_number(value: float, digits: int = 4) -> str:
    """Write a number for people: `1,797`, `0.01153`, `3.2e-07`, `not a number` spelt out."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    size = abs(value)
    if size < 1e-4 or size >= 1e9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def format_percent(share: float, digits: int = _PERCENT_DIGITS) -> str:
    """Write a share of one as a percentage: 0.4321 -> `43.2 %`."""
    if not math.isfinite(share):
        return format_number(share)
    return f"{100 * share:.{digits}f} %"
