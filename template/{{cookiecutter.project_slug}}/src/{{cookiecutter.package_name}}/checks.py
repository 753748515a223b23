"""Settings that are refused with a sentence."""


def require_positive(**settings: object) -> None:
    """Check that settings are numbers greater than zero.

    Raises:
        ValueError: names the first one that is not.
    """
    for name, value in settings.items():
        if not _number(name, value) > 0:
            raise ValueError(f"{name}={value} is out of range: it must be greater than 0.")


def require_fraction(**settings: object) -> None:
    """Check that settings are numbers in [0, 1).

    Raises:
        ValueError: names the first one that does not.
    """
    for name, value in settings.items():
        if not 0 <= _number(name, value) < 1:
            raise ValueError(f"{name}={value} is out of range: it must be at least 0 and less than 1.")


def require_count(**settings: object) -> None:
    """Check that settings are integers, 0 or more.

    Raises:
        ValueError: names the first one that is not.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}={value} is out of range: it must be an integer, 0 or more.")


def require_seed(**settings: object) -> None:
    """Check that settings are integers that every random generator accepts as a seed.

    Raises:
        ValueError: names the first one that is not.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise ValueError(f"{name}={value} is out of range: it must be an integer from 0 to {2**32 - 1}.")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value} is not a number.")
    return value
