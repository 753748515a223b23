"""Names and numbers of a run, as they can be shown to anybody, anywhere."""

from collections.abc import Sequence


def shown_name(name: str, longest: int = 60) -> str:
    r"""Return a name of a layer or a file for a line of text: without control characters, and not endless.

    Example:
        >>> shown_name("net.3"), shown_name("red\x1b[31m")
        ('net.3', 'red\\x1b[31m')
        >>> shown_name("a" * 50 + "tail", longest=11)
        'aaaaa…atail'
    """
    text = printable(name)
    if len(text) <= longest:
        return text
    # The tail tells neighbours apart, the head says where they are.
    tail = longest // 2
    return f"{text[: longest - tail - 1]}…{text[-tail:]}"


def printable(text: str) -> str:
    """Return a text with everything escaped that a terminal might take for a command, line ends included."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names in a row, the first few of many.

    Example:
        >>> listed(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    shown = ", ".join(shown_name(name) for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "step"), counted(12300, "step")
        ('1 step', '12,300 steps')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Return a share in percent, with digits only where they tell something.

    Example:
        >>> percent(0.314), percent(0.0123), percent(0.00002), percent(0)
        ('31%', '1.2%', '<0.1%', '0%')
    """
    if not share:
        return "0%"
    if share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
