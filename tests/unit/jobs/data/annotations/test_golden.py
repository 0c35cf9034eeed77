"""A small file of every schema converts to the rows and rejections that stand beside it.

`python -m tests.unit.jobs.data.annotations.test_golden` writes what is found, to be read before it
is committed.
"""

import gzip
from pathlib import Path

import pytest

from jobs.data.annotations.reading import read
from jobs.data.annotations.records import SCHEMAS, SchemaName
from jobs.data.annotations.sniff import sniff
from jobs.data.annotations.trainer_rows import RowRules
from jobs.data.convert import Conversion, convert, rejected_path

GOLDEN = Path(__file__).parents[4] / "golden" / "annotations"
FILES: dict[SchemaName, str] = {
    "timelens-100k": "timelens-100k.jsonl",
    "timelens-filter": "timelens-filter.jsonl",
    "timelens-bench": "charades-timelens.json",
    "chat": "chat.jsonl",
    "rows": "rows.jsonl",
    "charades-sta": "charades-sta.txt",
    "activitynet-captions": "activitynet-captions.json",
    "qvhighlights": "qvhighlights.jsonl",
    "time-r1": "time-r1.json",
    "tvgbench": "tvgbench.json",
    "museg": "museg.jsonl",
}


def converted(schema: SchemaName, folder: Path) -> tuple[str, str]:
    """Rows and rejections of the schema's small file."""
    output = folder / "rows.jsonl"
    rules = RowRules(keep_extras=schema == "rows")
    convert(
        GOLDEN / FILES[schema], output=output, conversion=Conversion(schema=schema, rules=rules)
    )
    return output.read_text(), rejected_path(output).read_text()


def expected_paths(schema: SchemaName) -> tuple[Path, Path]:
    return GOLDEN / "converted" / f"{schema}.jsonl", GOLDEN / "rejected" / f"{schema}.jsonl"


def test_every_schema_has_a_small_file() -> None:
    assert set(FILES) == set(SCHEMAS)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_rows_and_rejections_of_a_schema_are_the_golden_ones(
    schema: SchemaName, tmp_path: Path
) -> None:
    rows, rejections = (path.read_text() for path in expected_paths(schema))
    assert converted(schema, tmp_path) == (rows, rejections)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_rows_convert_to_themselves(schema: SchemaName, tmp_path: Path) -> None:
    rows, _ = expected_paths(schema)
    again = tmp_path / "again.jsonl"
    report = convert(
        rows,
        output=again,
        conversion=Conversion(schema=sniff(rows), rules=RowRules(keep_extras=True)),
    )
    assert again.read_bytes() == rows.read_bytes()
    assert not report.rejected


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schema_is_sniffed_from_the_content_under_any_name(
    schema: SchemaName, tmp_path: Path
) -> None:
    anonymous = tmp_path / "annotations"
    anonymous.write_bytes((GOLDEN / FILES[schema]).read_bytes())
    assert sniff(anonymous) == schema


@pytest.mark.parametrize("schema", SCHEMAS)
def test_gzipped_file_reads_like_the_plain_one(schema: SchemaName, tmp_path: Path) -> None:
    packed = tmp_path / FILES[schema]
    packed.write_bytes(gzip.compress((GOLDEN / FILES[schema]).read_bytes()))
    assert sniff(packed) == schema
    plain = [repr(record) for record in read(GOLDEN / FILES[schema], schema=schema)]
    assert [repr(record) for record in read(packed, schema=schema)] == plain


def write_golden() -> None:
    """Write what conversion gives now."""
    from tempfile import TemporaryDirectory

    for schema in SCHEMAS:
        with TemporaryDirectory() as folder:
            for path, text in zip(
                expected_paths(schema), converted(schema, Path(folder)), strict=True
            ):
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)


if __name__ == "__main__":
    write_golden()
