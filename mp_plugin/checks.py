"""What counts as a number, wherever one comes from: a setting, a command line or a checkpoint."""

import math
import sys


def is_number(value: object, *, lowest: float, highest: float = math.inf) -> bool:
    """Whether this is a finite number within bounds; a boolean is none.

    Example:
        >>> is_number(2, lowest=1), is_number(True, lowest=0), is_number(math.nan, lowest=0)
        (True, False, False)
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    # Not `math.isfinite`, which raises an error of its own for an integer beyond the range of floats.
    return abs(value) <= sys.float_info.max and lowest <= value <= highest


def is_count(value: object, *, lowest: int = 0) -> bool:
    """Whether this is a whole number of at least `lowest`; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest
