"""Sets of counterfactuals as Parquet files, each with the settings that it was made with in its metadata."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from softcft.data.columns import graph_features
from softcft.data.integrity import check_whole
from softcft.graph import CausalGraph

__all__ = ["check_made_with", "write_parquet"]

METADATA = b"softcft"  # key of the settings in a file's metadata


def check_made_with(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a file of a set was made with other settings (plain data), or was cut short."""
    for path in sorted(folder.glob("train-*.parquet")):
        check_whole(path)
        before = json.loads((pq.read_schema(path).metadata or {}).get(METADATA, b"{}"))
        for key, value in settings.items():
            if before.get(key) != value:
                raise ValueError(
                    f"{path} was made with {key} = {before.get(key)!r}, now it is {value!r}: restore the setting, "
                    "choose another output_dir, or delete the folder."
                )


def write_parquet(
    files: Mapping[Path, Mapping[str, Any]], graph: CausalGraph, batches: Iterable[list[dict[str, list[Any]]]]
) -> None:
    """Write several files side by side. Each is hidden until it is complete.

    Args:
        files: The settings of each, as plain data.
        graph: The causal graph, each variable of which is a column beside ``image``, ``source_row`` and
            ``intervention``.
        batches: For each batch of rows the columns of each file, in the order of ``files``.
    """
    added = {"source_row": Value("int64"), "intervention": Value("string")}
    features = Features({"image": Image(), **graph_features(graph), **added})
    hidden = [path.with_name(f".{path.name}") for path in files]
    with contextlib.ExitStack() as stack:
        writers = []
        for path, settings in zip(hidden, files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = features.arrow_schema.with_metadata(
                features.arrow_schema.metadata | {METADATA: json.dumps(settings)}
            )
            writers.append(stack.enter_context(pq.ParquetWriter(path, schema)))
        for tables in batches:
            for writer, columns in zip(writers, tables, strict=True):
                writer.write_table(pa.Table.from_pydict(columns, schema=writer.schema))
    for path, complete in zip(hidden, files, strict=True):
        path.rename(complete)
