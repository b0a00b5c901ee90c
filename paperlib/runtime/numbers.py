"""Numbers as they are printed: a certificate is rounded down, never to nearest."""

from decimal import ROUND_FLOOR, Decimal


def rounded_down(value: float, digits: int = 1) -> str:
    """The largest decimal of so many digits that is not above the value: what may be printed of a lower bound."""
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR))


def with_error(value: float, error: float, digits: int = 1) -> str:
    """`value ± standard error`, rounded to nearest; not for certificates."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"
