"""Clusters of more text than 32-bit offsets reach: sorted with 64-bit ones, written as before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lm_mixup.augment.cluster import sort_with_wide_offsets, with_narrow_offsets

ROWS = pa.schema([("id", pa.string()), ("member_ids", pa.list_(pa.string())), ("size", pa.int8())])


def test_rows_are_sorted_with_wide_offsets_and_come_back_as_they_were():
    rows = [{"id": f"c{n}", "member_ids": [f"m{n}", f"m{n + 1}"], "size": 2} for n in (3, 1, 4, 0, 2)]
    chunks = [pa.Table.from_pylist(rows[:2], ROWS), pa.Table.from_pylist(rows[2:], ROWS)]
    wide = sort_with_wide_offsets(pa.concat_tables(chunks), "id")
    assert wide.schema.types == [pa.large_string(), pa.large_list(pa.large_string()), pa.int8()]
    whole = pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), ROWS)
    assert with_narrow_offsets(wide, 0, 9, ROWS).equals(whole)
    parts = [with_narrow_offsets(wide, start, 2, ROWS.remove(2)) for start in (0, 2, 4)]
    assert pa.concat_tables(parts).equals(whole.select(["id", "member_ids"]))


def test_rows_beyond_two_gib_of_text_can_be_written(tmp_path):
    """The text lies at the end of a file of holes: no memory is taken, and only its last page is read."""
    end = 2**31 + 100
    with (tmp_path / "text").open("wb") as file:
        file.seek(end - 6)
        file.write(b"aabbcc")
    text = pa.memory_map(str(tmp_path / "text")).read_buffer(end)
    offsets = pa.py_buffer(np.array([0, end - 6, end - 4, end - 2, end], np.int64))
    names = pa.Array.from_buffers(pa.large_string(), 4, [None, offsets, text])
    lists = pa.LargeListArray.from_arrays(pa.array([1, 2, 4], pa.int64()), names)
    table = pa.table({"id": names.slice(1, 2), "member_ids": lists, "size": pa.array([1, 2], pa.int8())})
    expected = {"id": "bb", "member_ids": ["bb", "cc"], "size": 2}
    assert with_narrow_offsets(table, 1, 1, ROWS).to_pylist() == [expected]
