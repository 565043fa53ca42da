"""Rows from files: JSON lines, JSON, CSV and Parquet, each also gzipped.

Read directly rather than through `datasets.load_dataset`: no cache folder, no network, damaged lines are
named by their number, and a CSV's "NA" or "null" stays the text it is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

from fedmerge.errors import ConfigError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SPLIT_STEMS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}

_Table = list[dict[str, Any]]


def looks_like_a_path(source: str) -> bool:
    """Whether a source is meant as a path: it exists, starts like one or ends like a file.

    Example:
        >>> looks_like_a_path("../rows.jsonl.gz"), looks_like_a_path("clinc/clinc_oos:small")
        (True, False)
    """
    return (
        Path(source).expanduser().exists()
        or source.startswith((".", "/", "~"))
        or source.removesuffix(".gz").endswith(SUFFIXES)
    )


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split that a folder has: train.*, validation.* (or val.*, dev.*), test.*.

    Shards are named as on the Hub: train-00000-of-00002.parquet. Other files are left alone.

    Raises:
        ConfigError: the folder has no train file, or two different files for one split.
    """
    found = {split: _files_of(folder, split) for split in SPLIT_STEMS}
    if not found["train"]:
        names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ConfigError(
            f"data.source = {str(folder)!r}: no file train.jsonl, .json, .csv or .parquet (or .gz of one); "
            f"the folder has {names}"
        )
    return {split: files for split, files in found.items() if files}


def read_file(path: Path) -> _Table:
    """All rows of one file.

    Raises:
        ConfigError: the file is missing, empty, damaged, or of another format.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    readers = {".jsonl": _json, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if suffix not in readers:
        raise _refused(path, f"expected a file that ends in {', '.join(SUFFIXES)}, or one of them with .gz")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.name.endswith(".gz") else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _refused(path, f"damaged gzip file ({error})") from None
    except OSError as error:
        raise _refused(path, f"can't be read ({error.strerror or error})") from None
    rows = readers[suffix](content, path) if content.strip() else []
    if not rows:
        raise _refused(path, "the file has no rows")
    return rows


def named_classes(rows: _Table, features: Any) -> _Table:
    """Rows with the numbers of `datasets.ClassLabel` columns replaced by their names; -1 becomes None."""
    names = {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}
    return [
        {
            column: _class_name(value, names[column]) if column in names else value
            for column, value in row.items()
        }
        for row in rows
    ]


def _class_name(value: int | None, names: list[str]) -> str | None:
    return None if value is None or value < 0 else names[value]


def _files_of(folder: Path, split: str) -> list[Path]:
    suffixes = "|".join(re.escape(suffix) for suffix in SUFFIXES)
    pattern = re.compile(rf"({'|'.join(SPLIT_STEMS[split])})(?:-\d+-of-\d+)?(({suffixes})(\.gz)?)")
    matches = {path: pattern.fullmatch(path.name) for path in sorted(folder.iterdir())}
    files = {path: match.group(1, 2) for path, match in matches.items() if match}
    whole = [path for path in files if "-of-" not in path.name]
    if len(set(files.values())) > 1 or (whole and len(files) > 1):
        names = ", ".join(path.name for path in files)
        raise ConfigError(f"data.source = {str(folder)!r}: several files for the {split} split: {names}")
    return list(files)


def _json(content: bytes, path: Path) -> _Table:
    """A JSON list of objects, or one object a line, whatever the file is called."""
    text = _decoded(content, path)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise _refused(path, f"damaged JSON: {error}") from None
        numbered = list(enumerate(rows, start=1))
        where = "row"
    else:
        lines = enumerate(text.split("\n"), start=1)
        numbered = [(number, _json_line(line, number, path)) for number, line in lines if line.strip()]
        where = "line"
    for number, row in numbered:
        if not isinstance(row, dict):
            raise _refused(path, f"{where} {number} is no JSON object")
    return [row for _, row in numbered]


def _json_line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise _refused(path, f"line {number} is damaged JSON: {error}") from None


def _csv(content: bytes, path: Path) -> _Table:
    reader = csv.DictReader(io.StringIO(_decoded(content, path), newline=""), strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses documents above 128 kB
    try:
        rows = list(reader)
    except csv.Error as error:
        raise _refused(path, f"damaged CSV after line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, start=1):
        # DictReader files surplus cells under None and fills lacking ones with None.
        if None in row or None in row.values():
            raise _refused(path, f"row {number} has another number of cells than the header")
    return [dict(row) for row in rows]


def _parquet(content: bytes, path: Path) -> _Table:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped] # noqa: PLC0415  seldom needed

    try:
        table = parquet.read_table(io.BytesIO(content))
    except (ArrowException, OSError) as error:
        raise _refused(path, f"damaged Parquet file: {error}") from None
    rows: _Table = table.to_pylist()
    if b"huggingface" not in (table.schema.metadata or {}):
        return rows
    from datasets import Features  # noqa: PLC0415  importing it takes seconds

    return named_classes(rows, Features.from_arrow_schema(table.schema))


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(path, f"not UTF-8 at byte {error.start}") from None


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(f"data file {str(path)!r}: {why}")
