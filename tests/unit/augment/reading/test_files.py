"""Files of a pool: linked folders, CSV and TSV, and what is passed over."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_mixup.augment.reading import files
from lm_mixup.augment.reading.files import list_units, read_unit
from lm_mixup.core.errors import InputError


def lines(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": name, "completion": "c"}) + "\n" for name in names))


def prompts(pool):
    units, found = list_units(str(pool), 1 << 20)
    read = [item for unit in units for item in read_unit(unit, 1 << 20)]
    return [(json.loads(item) if isinstance(item, bytes) else item)["prompt"] for item in read], found


def test_linked_folders_are_followed_once(tmp_path):
    lines(tmp_path / "pool" / "a.jsonl", "a1", "a2")
    lines(tmp_path / "other" / "b.jsonl", "b1")
    lines(tmp_path / "other" / "deep" / "c.jsonl", "c1")
    (tmp_path / "pool" / "sub").symlink_to("../other")
    (tmp_path / "other" / "back").symlink_to("../pool")  # a circle
    lines(tmp_path / "file.jsonl", "f1")
    (tmp_path / "pool" / "f.jsonl").symlink_to("../file.jsonl")
    read, found = prompts(tmp_path / "pool")
    assert sorted(read) == ["a1", "a2", "b1", "c1", "f1"] and found["files"] == 4


@pytest.mark.parametrize(("ending", "mark"), [("csv", ","), ("tsv", "\t"), ("CSV", ",")])
def test_delimited_files_are_read(tmp_path, ending, mark):
    rows = [["prompt", "completion"], ["p1", f'"a{mark} ""b""\nc"'], ["été", "x"], ["short"]]
    text = "\ufeff" + "\r\n".join(mark.join(row) for row in rows) + "\r\n\r\n"
    (tmp_path / f"x.{ending}").write_bytes(text.encode())
    lines(tmp_path / "y.jsonl", "p3")
    units, found = list_units(str(tmp_path), 1 << 20)
    items = [item for unit in units for item in read_unit(unit, 1 << 20)]
    assert items[0] == {"prompt": "p1", "completion": f'a{mark} "b"\nc'}
    assert items[1:3] == [{"prompt": "été", "completion": "x"}, {"prompt": "short"}]
    assert len(items) == 4 and found["files_ignored"] == 0


@pytest.mark.parametrize("content", [b"a,a\n1,2\n", b"a,b\n1,2,3\n", b'a,b\n"1,2\n', b"a,b\n\xff,2\n"])
def test_a_damaged_table_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    (unit,), _ = list_units(str(tmp_path), 1 << 20)
    with pytest.raises(InputError, match="damaged") as told:
        read_unit(unit, 1 << 20)
    assert "\n" not in str(told.value)


def test_what_is_passed_over_is_counted(tmp_path):
    for name in (".hidden.jsonl", "_tmp/x.jsonl", "notes.txt", "a.jsonl"):
        lines(tmp_path / name, "p")
    assert prompts(tmp_path)[1]["files_ignored"] == 3


ROWS = [{"prompt": "p1", "completion": "c"}, {"prompt": "p2", "completion": "c"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
MISNAMED = {
    "gzip": gzip.compress(LINES.encode()),
    "an array": json.dumps(ROWS).encode(),
    "an indented array": json.dumps(ROWS, indent=2).encode(),
    "indented objects": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "lines": LINES.encode(),
}


@pytest.mark.parametrize("content", MISNAMED.values(), ids=MISNAMED)
def test_what_is_named_jsonl_is_read_as_what_it_is(tmp_path, content):
    (tmp_path / "x.jsonl").write_bytes(content)
    assert prompts(tmp_path)[0] == ["p1", "p2"]


def test_utf_16_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(LINES.encode("utf-16"))
    with pytest.raises(InputError, match=r"UTF-16; convert it, e.g. with iconv"):
        list_units(str(tmp_path), 1 << 20)


def test_a_lone_brace_among_lines_is_one_bad_row_and_an_indented_object_is_one_good_row(tmp_path):
    lone, whole = tmp_path / "lone.jsonl", tmp_path / "whole.json"
    lone.write_bytes(b'{\n{"prompt": "a", "completion": "b"}\n')
    whole.write_bytes(b'{\r\n  "prompt": "a",\r\n  "completion": "b"\r\n}')
    (first,), (second,) = (list_units(str(path), 1 << 20)[0] for path in (lone, whole))
    assert read_unit(first, 1 << 20) == [b"{\n", b'{"prompt": "a", "completion": "b"}\n']
    assert read_unit(second, 1 << 20) == [{"prompt": "a", "completion": "b"}]


PACKED = ("lines.jsonl.gz", "one.jsonl.gz", "array.json.gz", "lines.jsonl.zst", "rows.parquet")


@pytest.mark.parametrize("name", PACKED)
def test_a_decompression_bomb_is_refused_on_one_line_before_it_is_in_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "_UNPACKED", 1 << 20)
    path, size = tmp_path / name, 64 << 20
    if name.endswith(".parquet"):
        pq.write_table(
            pa.table({"prompt": pa.array(["x" * 4096] * (size // 4096)).dictionary_encode()}), path
        )
    elif name.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(b'{"a": 1}\n' * (size // 9))
    else:
        text = {"lines": b"\n" * size, "one": b'{"a":1}\n' * (size // 8), "array": b"[" + b" " * size + b"]"}
        path.write_bytes(gzip.compress(text[name.split(".")[0]], 9))
    assert path.stat().st_size < size / 100
    units = list_units(str(path), 1 << 20)[0]
    tracemalloc.start()
    with pytest.raises(InputError, match=r"unpacks to more than .* decompress it to JSONL first"):
        read_unit(units[0], 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2


def test_what_packs_well_is_no_bomb(tmp_path):
    path = tmp_path / "same.parquet"
    rows = [{"prompt": "the same", "completion": "again"}] * 5000
    pq.write_table(pa.Table.from_pylist(rows), path)
    (unit,) = list_units(str(path), 1 << 20)[0]
    assert read_unit(unit, 1 << 20) == rows
