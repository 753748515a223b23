"""Reading a user's tables, with care: csv, tsv, json, jsonl and parquet."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from {{cookiecutter.package_name}}.data.text_reading import read_text

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
#: Characters that a cell of a csv may have: as many as Python takes on every system, instead of 131,072.
LONGEST_CELL = (1 << 31) - 1


@dataclass(frozen=True)
class Table:
    """Some columns of a table, with the place of each row.

    Args:
        sources: the file of each row.
        unit: what a place is called: line or row.
        lines: where each row stands, from 1.
        columns: values by column name.
        class_names: of the labels, where the table itself says that its integers are numbers of classes.
    """

    sources: Sequence[str]
    unit: str
    lines: Sequence[int]
    columns: dict[str, list[Any]]
    class_names: list[str] | None = None

    def place(self, index: int) -> str:
        """Where a row stands, for a message."""
        return f"{self.sources[index]}, {self.unit} {self.lines[index]}"

    def require_text(self, column: str) -> None:
        """Check that a column holds text in every row.

        Raises:
            ValueError: names the first row where it does not.
        """
        for index, text in enumerate(self.columns[column]):
            if text is None or (isinstance(text, str) and not text.strip()):
                raise ValueError(f"{self.place(index)}: the text in column {column!r} is empty.")
            if not isinstance(text, str):
                raise ValueError(f"{self.place(index)}: column {column!r} holds {text!r}, which is no text.")


def read_table(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> Table:
    """Read some columns of a file.

    Args:
        path: a .csv or .tsv file with a header, a .jsonl or .json file of one object per line, a .json file of a list
            of objects, or a .parquet file.
        columns: which ones.
        encoding: of the text formats.

    Raises:
        ValueError: names the file and row that cannot be read, or the column that there is not.
    """
    if path.suffix in (".csv", ".tsv"):
        table = _read_csv(path, columns, encoding)
    elif path.suffix in (".jsonl", ".json"):
        table = _read_jsonl(path, columns, encoding)
    elif path.suffix == ".parquet":
        table = _read_parquet(path, columns)
    else:
        raise ValueError(f"{path} ends with none of {', '.join(TABLE_SUFFIXES)}: its format is unknown.")
    if not table.lines:
        raise ValueError(f"{path} is empty: it has no row.")
    return table


def _read_csv(path: Path, columns: Sequence[str], encoding: str) -> Table:
    csv.field_size_limit(LONGEST_CELL)
    delimiter = "\t" if path.suffix == ".tsv" else ","
    reader = csv.reader(io.StringIO(read_text(path, encoding), newline=""), delimiter=delimiter, strict=True)
    lines: list[int] = []
    rows: list[list[str]] = []
    start = 1
    try:
        header = next(reader, [])
        require_columns(path, columns, header)
        start = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}, line {start}: {len(row)} cells, and the header has {len(header)}; "
                    "a text that holds the separator stands in quotes."
                )
            if row:  # the reader gives blank lines as rows without cells
                lines.append(start)
                rows.append(row)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: {error}.") from error
    places = {name: header.index(name) for name in columns}
    return Table([str(path)] * len(rows), "line", lines, {name: [row[i] for row in rows] for name, i in places.items()})


def _read_jsonl(path: Path, columns: Sequence[str], encoding: str) -> Table:
    text = read_text(path, encoding)
    is_list = path.suffix == ".json" and text.lstrip().startswith("[")
    unit = "row" if is_list else "line"
    lines: list[int] = []
    found: dict[str, list[Any]] = {name: [] for name in columns}
    rows = enumerate(_parsed(path, 1, text) if is_list else text.split("\n"), start=1)
    for number, entry in rows:
        if not is_list and not entry.strip():
            continue
        row = entry if is_list else _parsed(path, number, entry)
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {unit} {number}: {str(entry)[:40]} is no object with columns.")
        require_columns(f"{path}, {unit} {number}", columns, list(row))
        lines.append(number)
        for name in columns:
            found[name].append(row[name])
    return Table([str(path)] * len(lines), unit, lines, found)


def _parsed(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line + error.lineno - 1}"
        raise ValueError(f"{place}: no JSON: {error.msg}: column {error.colno}.") from error


def _read_parquet(path: Path, columns: Sequence[str]) -> Table:
    try:
        require_columns(path, columns, pq.read_schema(path).names)
        table = pq.read_table(path, columns=list(columns))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    sources = [str(path)] * len(table)
    return Table(sources, "row", range(1, len(table) + 1), {name: table[name].to_pylist() for name in columns})


def require_columns(source: object, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Check that a table has the columns that the config names.

    Raises:
        ValueError: names the first one missing, and those there are, or the first one that is there twice.
    """
    for name in wanted:
        if name not in found:
            raise ValueError(f"{source} has no column {name!r}; it has: {', '.join(map(str, found)) or 'none'}.")
        if found.count(name) > 1:
            raise ValueError(f"{source} has {found.count(name)} columns {name!r}: rename them.")


def joined(tables: Sequence[Table]) -> Table:
    """The rows of tables with the same columns, one table after the other."""
    return Table(
        [source for table in tables for source in table.sources],
        tables[0].unit,
        [line for table in tables for line in table.lines],
        {name: [value for table in tables for value in table.columns[name]] for name in tables[0].columns},
        tables[0].class_names,
    )
