"""From the labels of a table to class numbers, with care."""

import re
from collections.abc import Sequence
from typing import Any

from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.table_reading import Table


def read_labels(table: Table, column: str) -> list[int | str]:
    """The labels of a table: integers if all of them are, also as 1.0, else text.

    Raises:
        ValueError: names the first row without a label, or with one that is neither.
    """
    labels = table.columns[column]
    for index, label in enumerate(labels):
        if label is None or (isinstance(label, str) and not label.strip()):
            raise ValueError(f"{table.place(index)}: the label in column {column!r} is missing.")
        if not isinstance(label, str | int) and not _is_integer(label):
            raise ValueError(f"{table.place(index)}: label {label!r} is neither text nor an integer.")
    if all(_is_integer(label) for label in labels):
        return [_integer(label) for label in labels]
    return [str(label).strip() for label in labels]


def _is_integer(label: object) -> bool:
    if isinstance(label, str):
        # A column in which a label was missing once was saved as 0.0, 1.0.
        return re.fullmatch(r"-?\d+(\.0+)?", label.strip()) is not None
    if isinstance(label, float):
        return label.is_integer()
    return isinstance(label, int) and not isinstance(label, bool)


def _integer(label: Any) -> int:
    return int(label.strip().partition(".")[0] if isinstance(label, str) else label)


def class_numbers(
    table: Table, labels: Sequence[int | str], class_names: Sequence[str], column: str, numbered: bool
) -> list[int]:
    """The class number of each row.

    Args:
        table: for the places of the rows.
        labels: what `read_labels` made of them.
        class_names: by class number.
        column: the column's name, for the message.
        numbered: whether integers are class numbers themselves, rather than names.

    Raises:
        ValueError: names the first row whose label is none of the classes.
    """
    number_of = {name: number for number, name in enumerate(class_names)}
    numbers = []
    for index, label in enumerate(labels):
        # An integer is text where another row holds none; then the name of a class comes first.
        is_number = numbered and _is_integer(label) and (isinstance(label, int) or label not in number_of)
        number = _integer(label) if is_number else number_of.get(str(label), -1)
        if not 0 <= number < len(class_names):
            known = f"0 to {len(class_names) - 1}" if is_number else ", ".join(class_names[:9])
            raise ValueError(
                f"{table.place(index)}: label {label!r} in column {column!r} is none of the classes: {known}."
            )
        numbers.append(number)
    return numbers


def names_of(labels: Sequence[int | str]) -> list[str]:
    """The classes that occur, in order: of the numbers, or of the alphabet."""
    return [str(label) for label in sorted(set(labels), key=lambda label: (isinstance(label, str), label))]


def require_trained(numbers: dict[str, list[int]], class_names: Sequence[str]) -> None:
    """Check that every class has an example to be learnt from.

    Raises:
        ValueError: names the first one that has none.
    """
    trained = set(numbers["train"])
    for number, name in enumerate(class_names):
        if number not in trained:
            others = [split for split in SPLITS[1:] if number in numbers[split]]
            where = f", only in {' and '.join(others)}" if others else ""
            raise ValueError(f"class {name!r} has no example in the train split{where}: leave it out, or add some.")
