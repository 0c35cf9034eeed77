"""`sniff(path)` → the schema of an annotation file, by what is in it; its name plays no part."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from common.errors import ConfigError
from jobs.data.annotations.containers import first_byte, json_members, json_records, text_lines
from jobs.data.annotations.records import SCHEMAS, BadRecord, Record, SchemaName

LOOKED_AT = 20
"""Records that are tried before giving up: the first ones may be broken."""

_CHARADES = re.compile(r"\S+ [0-9.]+ [0-9.]+ ?##")
_RECORD_KEYS: tuple[tuple[SchemaName, frozenset[str]], ...] = (
    ("chat", frozenset({"messages", "videos", "solution"})),
    ("timelens-100k", frozenset({"video_path", "events"})),
    ("timelens-filter", frozenset({"video_path", "query", "span"})),
    ("qvhighlights", frozenset({"qid", "query", "vid"})),
    ("time-r1", frozenset({"video", "sentence", "timestamp"})),
    ("tvgbench", frozenset({"path", "question", "answer"})),
    ("museg", frozenset({"problem", "solution", "video"})),
    ("rows", frozenset({"problem", "videos"})),
    ("rows", frozenset({"query", "videos"})),
)
_MEMBER_KEYS: tuple[tuple[SchemaName, frozenset[str]], ...] = (
    ("timelens-bench", frozenset({"spans", "queries"})),
    ("activitynet-captions", frozenset({"timestamps", "sentences"})),
)
NOT_TEXT = "a file that is not UTF-8 text"


def sniff(path: Path) -> SchemaName:
    """Schema of a file.

    Raises:
        ConfigError: no such file, or no record that any schema knows; says what was found.
    """
    start = first_byte(path)
    if start not in (b"{", b"["):
        return _sniff_lines(path)
    found = _match(_start(json_members(path)), _MEMBER_KEYS) if start == b"{" else None
    if found is not None:
        return found
    records = _start(json_records(path))
    found = _match(records, _RECORD_KEYS)
    if found is None:
        raise _unknown(path, _keys_found(records))
    return found


def _sniff_lines(path: Path) -> SchemaName:
    lines = _start(text_lines(path))
    if any(isinstance(line, Record) and _CHARADES.match(line.content) for line in lines):
        return "charades-sta"
    raise _unknown(path, _text_found(lines))


def _start(records: Iterable[Record | BadRecord]) -> list[Record | BadRecord]:
    return list(itertools.islice(records, LOOKED_AT))


def _match(
    records: Iterable[Record | BadRecord], schemas: Iterable[tuple[SchemaName, frozenset[str]]]
) -> SchemaName | None:
    """The first schema all of whose keys some record has."""
    for record in records:
        for schema, keys in schemas:
            content = record.content if isinstance(record, Record) else None
            if isinstance(content, dict) and keys <= content.keys():
                return schema
    return None


def _keys_found(records: list[Record | BadRecord]) -> str:
    for record in records:
        if isinstance(record, Record) and isinstance(record.content, dict):
            return "records with the keys " + ", ".join(list(record.content)[:12])
    return _fault_found(records) or "JSON without objects"


def _text_found(lines: list[Record | BadRecord]) -> str:
    if any(isinstance(line, Record) and "\0" in line.content for line in lines):
        return NOT_TEXT
    if fault := _fault_found(lines):
        return fault
    texts = (line.content for line in lines if isinstance(line, Record))
    return f"text such as {next(texts)[:60]!r}" if lines else "nothing"


def _fault_found(records: list[Record | BadRecord]) -> str | None:
    for record in records:
        if isinstance(record, BadRecord):
            return NOT_TEXT if record.reason == "bad text" else f"{record.reason}: {record.detail}"
    return None


def _unknown(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{path}: found {found}, wanted one of the schemas {', '.join(SCHEMAS)}; "
        "name it with --schema if it is one of them"
    )
