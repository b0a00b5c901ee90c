"""Numbers as they are printed: a lower bound is rounded down and an upper bound up, never to nearest."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def rounded_down(value: float, digits: int = 1) -> str:
    """The largest decimal of so many digits that is not above the value: what may be printed of a lower bound."""
    return _rounded(value, digits, ROUND_FLOOR)


def rounded_up(value: float, digits: int = 1) -> str:
    """The smallest decimal of so many digits that is not below the value: what may be printed of an upper bound."""
    return _rounded(value, digits, ROUND_CEILING)


def with_error(value: float, error: float, digits: int = 1) -> str:
    """`value ± standard error`, rounded to nearest; not for certificates."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _rounded(value: float, digits: int, way: str) -> str:
    if math.isinf(value):  # a bound that overflowed, and has no decimals
        return str(float(value))
    # all digits of the largest float64: by default Decimal refuses numbers of more than 28
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), way, Context(prec=330 + digits)))
