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


def sniff(path: Path) -> SchemaName:
    """Schema of a file.

    Raises:
        ConfigError: no such file, or no record that any schema knows; says what was found.
    """
    start = first_byte(path)
    if start not in (b"{", b"["):
        return _sniff_lines(path)
    found = _match(_first(json_members(path)), _MEMBER_KEYS) if start == b"{" else None
    if found is not None:
        return found
    records = _first(json_records(path))
    found = _match(records, _RECORD_KEYS)
    if found is None:
        raise _unknown(path, _keys_found(records))
    return found


def _sniff_lines(path: Path) -> SchemaName:
    records = _first(text_lines(path))
    if any(_CHARADES.match(record.content) for record in records):
        return "charades-sta"
    raise _unknown(path, f"text such as {records[0].content[:60]!r}" if records else "nothing")


def _first(records: Iterable[Record | BadRecord]) -> list[Record]:
    start = itertools.islice(records, LOOKED_AT)
    return [record for record in start if isinstance(record, Record)]


def _match(
    records: Iterable[Record], schemas: Iterable[tuple[SchemaName, frozenset[str]]]
) -> SchemaName | None:
    """The first schema all of whose keys some record has."""
    for record in records:
        for schema, keys in schemas:
            if isinstance(record.content, dict) and keys <= record.content.keys():
                return schema
    return None


def _keys_found(records: list[Record]) -> str:
    for record in records:
        if isinstance(record.content, dict):
            return "records with the keys " + ", ".join(list(record.content)[:12])
    return "JSON without objects"


def _unknown(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{path}: found {found}, wanted one of the schemas {', '.join(SCHEMAS)}; "
        "name it with --schema if it is one of them"
    )
