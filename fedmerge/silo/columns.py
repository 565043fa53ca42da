"""Columns of rows: which a task wants, and whether the rows have them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedmerge.errors import ConfigError, nearest
from fedmerge.silo.settings import DataSettings, TaskSettings

Row = Mapping[str, Any]
Rows = Sequence[Row]


def required_columns(data: DataSettings, task: TaskSettings | None = None) -> tuple[str, ...]:
    """Columns that every row must have.

    A classification reads the text and the label; anything else reads chat records, prompt and
    completion, or plain text, whichever `data` names first in this order.

    Example:
        >>> required_columns(DataSettings("chat.jsonl", messages="turns"))
        ('turns',)
        >>> required_columns(DataSettings("rows.csv", label="intent"), TaskSettings("classification"))
        ('text', 'intent')
    """
    content: tuple[str, ...] = (data.text,)
    if task is None or task.kind != "classification":
        if data.messages:
            content = (data.messages,)
        elif data.prompt:
            content = (data.prompt, data.completion)
    return tuple(column for column in (*content, data.label) if column)


def labels_of(rows: Rows, column: str) -> list[str]:
    """The labels that occur in rows, as text, sorted.

    Example:
        >>> labels_of([{"label": 1}, {"label": 0}, {"label": 1}], "label")
        ['0', '1']
    """
    return sorted({str(row[column]) for row in rows})


def checked(rows: Rows, data: DataSettings, where: str) -> Rows:
    """Rows whose columns are there and filled; labels become text.

    Args:
        rows: maybe none.
        data: names the columns.
        where: source and split, for messages.

    Raises:
        ConfigError: a column is lacking, or a row's value is not what the column must hold.
    """
    for column in required_columns(data) if rows else ():
        _check_column(rows, column, where)
        check = _check_label if column == data.label else _check_text
        if column == data.messages:
            check = _check_messages
        for number, row in enumerate(rows, start=1):
            problem = check(row.get(column))
            if problem:
                raise ConfigError(f"{where}, row {number}: column {column!r} {problem}")
    if not data.label:
        return rows
    return [{**row, data.label: str(row[data.label])} for row in rows]


def column_values(rows: Iterable[Row], column: str, where: str) -> list[str]:
    """The values of a column as text, in the order of rows.

    Raises:
        ConfigError: a row has no value there.
    """
    rows = list(rows)
    if rows:
        _check_column(rows, column, where)
    values = [row.get(column) for row in rows]
    for number, value in enumerate(values, start=1):
        if problem := _check_label(value):
            raise ConfigError(f"{where}, row {number}: column {column!r} {problem}")
    return [str(value) for value in values]


def _check_column(rows: Rows, column: str, where: str) -> None:
    known = dict.fromkeys(name for row in rows[:100] for name in row)
    if column not in known and not any(column in row for row in rows):
        raise ConfigError(f"{where}: no column {column!r}; {nearest(column, map(str, known))}")


def _check_text(value: object) -> str:
    return "" if isinstance(value, str) else f"must hold text, not {_short(value)}"


def _check_label(value: object) -> str:
    filled = isinstance(value, str | int | float) and str(value).strip() != ""
    if filled and not (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"must hold a name or a number, not {_short(value)}"


def _check_messages(value: object) -> str:
    records = value if isinstance(value, list) and value else [None]
    for record in records:
        known = record if isinstance(record, Mapping) else {}
        if not (isinstance(known.get("role"), str) and isinstance(known.get("content"), str)):
            return f"must hold a list of {{'role': text, 'content': text}}, not {_short(value)}"
    return ""


def _short(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
