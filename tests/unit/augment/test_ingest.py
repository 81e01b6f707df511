"""Ingest without Ray: columns, refusals, units, repeats, and two thousand mutated lines."""

import gzip
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lm_mixup.augment.dedup.exact import (
    decode_places,
    encode_places,
    find_duplicates,
    keys_of,
    repeated_places,
    split_by_bucket,
)
from lm_mixup.augment.ingest import Block, cut_blocks, make_work, scan_group, scan_unit
from lm_mixup.augment.reading.files import Unit, list_units, read_unit, source_name
from lm_mixup.augment.reading.reader import Reader
from lm_mixup.augment.reading.rows import REASONS, PoolRow, Refused, line_limit, raw_text, read_item
from lm_mixup.config import IngestConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.schemas import INSTRUCTION, content_id

LIMIT = line_limit(100_000)


def read(record, columns=None, max_chars=100_000):
    raw = record if isinstance(record, bytes) else json.dumps(record).encode()
    return read_item(raw, columns or {}, "pool", max_chars)


def refusal(record, columns=None, max_chars=100_000):
    with pytest.raises(Refused) as caught:
        read(record, columns, max_chars)
    return caught.value.reason


@pytest.mark.parametrize(
    ("record", "prompt", "completion"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"prompt": "p", "response": "c"}, "p", "c"),
        ({"instruction": "i", "output": "o"}, "i", "o"),
        ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
        ({"instruction": "i", "input": "x", "output": "o"}, "i\n\nx", "o"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"input": "i", "output": "o"}, "i", "o"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "u", "a"),
        (
            {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "h"},
                               {"from": "gpt", "value": "g"}, {"from": "human", "value": "h2"}]},
            "s\n\nh",
            "g",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]},
                       {"role": "assistant", "content": "a"}]}, "u", "a"),
    ],
)  # fmt: skip
def test_known_layouts_are_recognised(record, prompt, completion):
    row = read(record)
    assert (row.prompt, row.completion, row.source) == (prompt, completion, "pool")
    assert row.id == row.content == content_id(prompt, completion)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "blank_line"),
        (b" \t\r\n", "blank_line"),
        (b"{", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "bad_json"),
        (b'{"prompt": "p\xff", "completion": "c"}', "not_utf8"),
        ('{"prompt": "p", "completion": "c"}'.encode("utf-16"), "not_utf8"),
        (b"[1, 2]", "not_an_object"),
        (b"null", "not_an_object"),
        ({"completion": "c"}, "no_prompt"),
        ({"prompt": "", "completion": "c"}, "no_prompt"),
        ({"prompt": None, "completion": "c"}, "no_prompt"),
        ({"prompt": "p", "completion": " \n"}, "no_completion"),
        ({"prompt": "p"}, "no_completion"),
        ({"prompt": 7, "completion": "c"}, "wrong_type"),
        ({"prompt": "p", "completion": ["c", "d"]}, "wrong_type"),
        ({"prompt": "p", "completion": "a\u0000b"}, "bad_character"),
        (b'{"prompt": "p", "completion": "\\ud800"}', "bad_character"),
        ({"id": [1], "prompt": "p", "completion": "c"}, "bad_id"),
        ({"id": "x" * 300, "prompt": "p", "completion": "c"}, "bad_id"),
        ({"prompt": "p", "completion": "c" * 100_001}, "too_long"),
        ({"messages": []}, "no_prompt"),
        ({"messages": [{"role": "user", "content": "u"}]}, "no_completion"),
        ({"messages": "hello"}, "wrong_type"),
        ({"messages": ["hello"]}, "wrong_type"),
        (b"x" * LIMIT, "too_long"),
    ],
)
def test_refusals(record, reason):
    assert refusal(record) == reason
    assert reason in REASONS


def test_given_columns_override_recognition():
    record = {"prompt": "not this", "q": "p", "a": "c", "n": 5, "kind": "cs", "set": "mine"}
    columns = {"prompt": "q", "completion": "a", "id": "n", "task_type": "kind", "source": "set"}
    expected = PoolRow("5", content_id("p", "c"), True, "mine", "cs", "p", "c", ("prompt",))
    assert read(record, columns) == expected
    assert refusal({"prompt": "p", "completion": "c"}, columns) == "no_prompt"


def test_a_task_type_that_is_not_one_of_ours_is_detected_instead():
    row = read({"prompt": "True or false? Water is wet.", "completion": "True", "task_type": ["x"]})
    assert row.task_type == "tfq"


def test_raw_text_is_short_and_storable():
    for raw in [b"\xff" * 9000, "\ud800" * 9000, {"a": {1, 2}}, b"a\0b", float("nan"), ["\udfff\0"]]:
        text = raw_text(raw)
        assert text.encode("utf-8") and "\0" not in text and len(text) <= 6 * 2000


def test_fuzz_every_line_comes_out_or_is_refused(tmp_path, import_benchmark):
    fuzzed = import_benchmark("fuzz").fuzzed(2_000, 0)
    lines = [line for kind, line in fuzzed if kind != "5 MB field"]
    lines += [b"{}"] * (2_000 - len(lines))
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    unit = Unit(str(path), "jsonl", 0, path.stat().st_size, "fuzz")
    reader = Reader(IngestConfig(), 0)
    scan, contents, ids = scan_unit(0, unit, reader, 1)
    assert scan.items == 2000
    assert scan.usable + sum(scan.reasons.values()) == 2000 and set(scan.reasons) <= set(REASONS)
    assert len(contents) == len(ids) == scan.usable > 200
    blocks = cut_blocks([unit], [2000], 300, repeated_places([contents]), repeated_places([ids]))
    assert [block.line for block in blocks] == [1, 301, 601, 901, 1201, 1501, 1801]
    work = make_work(reader)
    results = [work(block) for block in blocks]
    assert (
        sum(r.rows.num_rows + r.rejected.num_rows for r in results) == sum(r.rows_in for r in results) == 2000
    )
    kept = pa.concat_tables([r.rows for r in results])
    assert kept.schema == INSTRUCTION and len(set(kept["id"].to_pylist())) == kept.num_rows
    places = pa.concat_tables([r.rejected for r in results])["where"].to_pylist()
    assert len(set(places)) == len(places)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=12), st.just(b"x" * 40)), max_size=25),
    st.integers(1, 90),
    st.booleans(),
)
@example(lines=[b"\xef\xbb\xbf"], split=1, ends=False)
def test_byte_ranges_give_the_same_lines_whatever_the_split(tmp_path_factory, lines, split, ends):
    lines = [line.replace(b"\n", b"") for line in lines]
    path = tmp_path_factory.mktemp("split") / "pool.jsonl"
    content = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    assume(not content.startswith((b"\xff\xfe", b"\xfe\xff")))  # UTF-16, which is refused
    path.write_bytes(content)
    units, _ = list_units(str(path), split)
    assume(all(unit.format == "jsonl" for unit in units))  # and no array, object or gzip under this name
    whole, _ = list_units(str(path), 1 << 30)
    pieces = [line for unit in units for line in read_unit(unit, 1 << 20)]
    assert pieces == [line for unit in whole for line in read_unit(unit, 1 << 20)]
    expected = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert [line.rstrip(b"\n") for line in pieces] == (expected if expected[-1] else expected[:-1])


def test_a_line_past_the_limit_is_cut_and_its_neighbours_are_whole(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b"short\n" + b"x" * 5000 + b"\nlast")
    for split in [1, 100, 10_000]:
        units, _ = list_units(str(path), split)
        assert [line for unit in units for line in read_unit(unit, 64)] == [b"short\n", b"x" * 64, b"last"]


ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(7)]


def write_jsonl(path, rows=ROWS, mode=open):
    with mode(path, "wb") as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)


def items_of(pool):
    units, found = list_units(str(pool), 40)
    raws = [raw for unit in units for raw in read_unit(unit, 1 << 20)]
    return [json.loads(raw) if isinstance(raw, bytes) else raw for raw in raws], found


def test_every_format_gives_the_same_items(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    write_jsonl(tmp_path / "a.json")
    write_jsonl(tmp_path / "a.jsonl.gz", mode=gzip.open)
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(ROWS, indent=1).encode()))
    with pa.CompressedOutputStream(str(tmp_path / "b.json.zst"), "zstd") as file:
        file.write(json.dumps(ROWS).encode())
    write_jsonl(tmp_path / "c.json.gz", mode=gzip.open)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=3)
    names = ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "b.json", "bom.jsonl", "a.parquet"]
    for name in [*names, "b.json.gz", "b.json.zst", "c.json.gz"]:
        assert items_of(tmp_path / name)[0] == ROWS, name


def test_folders_globs_and_uris(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[3:])
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "a.jsonl", ROWS[:3])
    (tmp_path / "README.md").write_text("no pool")
    (tmp_path / ".hidden.jsonl").write_text("{")
    for pool in [tmp_path, f"{tmp_path}/*.jsonl", f"file://{tmp_path}"]:
        items, found = items_of(pool)
        assert items == ROWS and found["files"] == 2
    assert items_of(tmp_path)[1]["files_ignored"] == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.jsonl", None, "no such file"),
        ("table.xlsx", b"a,b", "ends in one of"),
        ("bad.parquet", b"PAR1 and then nothing", "not readable"),
        ("bad.jsonl.gz", gzip.compress(b"x" * 10_000, mtime=0)[:40], "damaged"),
        ("garbled.jsonl.gz", gzip.compress(b"x" * 10_000, mtime=0)[:10] + b"\xff" * 30, "damaged"),
        ("bad.json", b"[1, 2", "damaged"),
    ],
)
def test_files_that_cannot_be_read_stop_with_one_line(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        items_of(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_damaged_file_is_the_value_of_its_scan_not_an_error_of_every_table(tmp_path):
    """Ray prints a traceback for each failed result that nobody fetches."""
    path = tmp_path / "bad.csv"
    path.write_bytes(b'prompt,completion\na,b\n"never closed,d\n')
    (unit,), _ = list_units(str(path), 1 << 20)
    error, *tables = scan_group(0, [unit], Reader(IngestConfig(), 0), 2)
    assert isinstance(error, InputError) and "bad.csv" in str(error) and "line 3" in str(error)
    assert tables == [None] * 4


def test_folders_of_unfinished_work_are_passed_over(tmp_path):
    """What Spark has not committed, and notebooks' old copies, are no rows of the pool."""
    pool = tmp_path / "_pools" / "mine"
    for name in ("", "_temporary/0", ".ipynb_checkpoints", "more"):
        (pool / name).mkdir(parents=True, exist_ok=True)
        write_jsonl(pool / name / "a.jsonl")
    items, found = items_of(pool)
    assert items == ROWS + ROWS
    assert (found["files"], found["files_ignored"]) == (2, 2)


def test_parquet_texts_that_are_not_utf8_are_refused_one_by_one(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": ["p", "q", "r"], "completion": texts}), tmp_path / "a.parquet")
    raws, _ = items_of(tmp_path / "a.parquet")
    rows = [Reader(IngestConfig(), 0).row(raw, Unit("", "parquet", 0, 0, "s")) for raw in raws]
    assert [row if isinstance(row, str) else row.completion for row in rows] == ["good", "not_utf8", "fine"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/dolly.jsonl", "dolly"),
        ("/x/flan/part-000003.parquet", "flan"),
        ("/x/train-00000-of-00008.parquet", "train"),
        ("/x/2024.jsonl", "x"),
    ],
)
def test_source_names(path, name):
    assert source_name(path) == name


def test_repeats_by_hand():
    keys = keys_of([b"a" * 16, b"b" * 16, b"a" * 16, b"c" * 16, b"b" * 16, b"a" * 16])
    places = encode_places(1, np.array([5, 2, 0, 9, 7, 6]))
    expected = encode_places(1, np.array([5, 6, 7]))  # the first `a` stands at 0, the first `b` at 2
    for buckets in [1, 2, 7]:
        tables = split_by_bucket(keys, places, buckets)
        found = np.sort(np.concatenate([repeated_places([table]) for table in tables]))
        assert found.tolist() == expected.tolist()
    units, rows = decode_places(expected)
    assert units.tolist() == [1, 1, 1] and rows.tolist() == [5, 6, 7]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 4))
def test_repeats_equal_a_plain_set(values, buckets):
    keys = keys_of([value.to_bytes(1, "big") * 16 for value in values])
    tables = split_by_bucket(keys, encode_places(0, np.arange(len(values))), buckets)
    seen, expected = set(), []
    for index, value in enumerate(values):
        if value in seen:
            expected.append(index)
        seen.add(value)
    assert np.sort(np.concatenate([repeated_places([table]) for table in tables])).tolist() == expected


def duplicates_of(rows, buckets=1):
    """`find_duplicates` of (id, content) pairs: duplicates, duplicate ids, and rounds."""
    places = encode_places(0, np.arange(len(rows)))
    asked = []

    def finder(values):
        keys = keys_of([hashlib.blake2b(str(value).encode(), digest_size=16).digest() for value in values])
        tables = split_by_bucket(keys, places, buckets)

        def find(left_out):
            asked.append(left_out)
            return np.sort(np.concatenate([repeated_places([table], left_out) for table in tables]))

        return find

    duplicates, taken = find_duplicates(finder([row[1] for row in rows]), finder([row[0] for row in rows]))
    return duplicates.tolist(), taken.tolist(), len(asked) // 2


@pytest.mark.parametrize(
    ("rows", "duplicates", "duplicate_ids"),
    [
        (["aX", "aY", "bY"], [], [1]),  # Y lives on as b
        (["aX", "aX", "aY", "aY"], [1], [2, 3]),
        (["aX", "bX", "bY"], [1], []),  # b is free: its first row was a duplicate
        (["aX", "aY", "bY", "bZ", "cZ", "cW"], [], [1, 3, 5]),
        (["aX", "bZ", "aY", "bY", "cY", "dY"], [5], [2, 3]),
        (["aX", "aY", "bY", "aY", "bX", "cY"], [3, 4, 5], [1]),
    ],
)
def test_no_row_is_folded_into_one_that_is_refused_for_its_id(rows, duplicates, duplicate_ids):
    assert duplicates_of([tuple(row) for row in rows])[:2] == (duplicates, duplicate_ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=40), st.integers(1, 4))
def test_ids_and_contents_settle_as_in_one_pass_in_order(rows, buckets):
    ids, contents, duplicates, duplicate_ids = set(), set(), [], []
    for number, (name, content) in enumerate(rows):
        if content in contents:
            duplicates.append(number)
        elif name in ids:
            duplicate_ids.append(number)
        else:
            ids.add(name)
            contents.add(content)
    assert duplicates_of(rows, buckets)[:2] == (duplicates, duplicate_ids)


def test_rows_that_repeat_under_taken_ids_take_no_more_rounds():
    rows = [("a", "X"), *[("a", "Y")] * 50, *[(f"b{i}", i) for i in range(50)]]
    rows += [(f"b{i}", "the same") for i in range(50)]
    assert duplicates_of(rows) == ([], [*range(1, 51), *range(101, 151)], 2)
    assert duplicates_of([(name, name) for name in range(50)]) == ([], [], 1)


def test_blocks_number_their_items_within_the_file():
    a, b = Unit("a", "jsonl", 0, 9, "s"), Unit("a", "jsonl", 9, 12, "s")
    other = Unit("b", "jsonl", 0, 9, "s")
    again = np.concatenate([encode_places(0, np.array([1, 3])), encode_places(2, np.array([0]))])
    blocks = cut_blocks([a, b, other], [4, 1, 2], 3, again, encode_places(1, np.array([0])))
    assert blocks == [
        Block(a, 0, 3, 1, (1,)),
        Block(a, 3, 1, 4, (0,)),
        Block(b, 0, 1, 5, (), (0,)),
        Block(other, 0, 2, 1, (0,)),
    ]
