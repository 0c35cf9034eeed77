"""`read(path)` → every record of an annotation file, in order, none filtered and none altered.

Used by conversion, inspection and evaluation.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from common.errors import ConfigError
from jobs.data.annotations import benchmarks, rl_sets, timelens, trainer
from jobs.data.annotations.records import SCHEMAS, Annotation, BadRecord, SchemaName
from jobs.data.annotations.sniff import sniff

READERS: Mapping[SchemaName, Callable[[Path], Iterator[Annotation | BadRecord]]] = MappingProxyType(
    {
        "timelens-100k": timelens.read_100k,
        "timelens-filter": timelens.read_filter,
        "timelens-bench": timelens.read_bench,
        "chat": trainer.read_chat,
        "rows": trainer.read_rows,
        "charades-sta": benchmarks.read_charades_sta,
        "activitynet-captions": benchmarks.read_activitynet_captions,
        "qvhighlights": benchmarks.read_qvhighlights,
        "time-r1": rl_sets.read_time_r1,
        "tvgbench": rl_sets.read_tvgbench,
        "museg": rl_sets.read_museg,
    }
)


def read(path: Path, *, schema: SchemaName | None = None) -> Iterator[Annotation | BadRecord]:
    """Records of a file, one at a time, so memory does not grow with the file.

    Args:
        path: plain or gzipped.
        schema: default: `sniff(path)`.

    Raises:
        ConfigError: no such file, or an unknown schema.
    """
    return READERS[sniff(path) if schema is None else schema](path)


def schema_named(name: str) -> SchemaName:
    """A schema by the name a user typed.

    Raises:
        ConfigError: unknown; suggests the nearest.
    """
    for schema in SCHEMAS:
        if schema == name:
            return schema
    nearest = get_close_matches(name, get_args(SchemaName), n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"schema: found {name!r}, wanted one of {', '.join(SCHEMAS)}{hint}")
