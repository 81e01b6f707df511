"""Decontamination without Ray: what counts as shared text, and how evaluation sets are read."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.dedup.decontaminate import build_index, read_eval_index, read_eval_items
from lm_mixup.augment.dedup.fuzzy_pass import match_unit
from lm_mixup.augment.reading.files import Unit, list_units
from lm_mixup.augment.reading.reader import Reader
from lm_mixup.augment.reading.rows import PoolRow
from lm_mixup.config import DecontaminateConfig, IngestConfig
from lm_mixup.core.errors import InputError

WORDS = [f"w{number}" for number in range(3000)]


def row(prompt, completion="c"):
    return PoolRow("x", "x", True, "pool", "qa", prompt, completion)


def config(files=("unused",), **more):
    return DecontaminateConfig(files=list(files), **more)


def index(items, **more):
    return build_index(items, config(**more))


def text(rng, size):
    return " ".join(rng.choices(WORDS, k=size))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(10, 40), st.sampled_from([5, 13]))
def test_a_row_is_refused_exactly_if_it_shares_a_whole_ngram(seed, shared, size, n):
    rng = random.Random(seed)
    item = text(rng, size).split()
    shared = min(shared, size)
    start = rng.randrange(size - shared + 1)
    pool_text = f"{text(rng, 9)} {' '.join(item[start : start + shared])} {text(rng, 9)}"
    found = index([("other", [text(rng, 50)]), ("item", [" ".join(item)])], ngram=n).match(row(pool_text))
    assert found == ("item" if shared >= min(n, size) else None)


def test_case_punctuation_and_the_border_of_prompt_and_completion_do_not_hide_it():
    item = "Which planet of the solar system has the most known moons, and how many?"
    found = index([("q1", [item])])
    assert (
        found.match(row("**WHICH** planet -- of the “solar system”", "has the most known moons and how many"))
        == "q1"
    )
    assert found.match(row("Which planet of the solar system has the most moons?", "Saturn.")) is None


def test_short_items_count_as_a_whole_and_very_short_ones_not_at_all():
    items = [("short", ["one two three four five six seven eight"]), ("tiny", ["true or false"])]
    found = index(items)
    assert found.match(row("zero one two three four five six seven eight nine")) == "short"
    assert found.match(row("one two three four five six seven nine", "true or false")) is None
    assert found.skipped == 1
    assert index(items, min_words=3).match(row("well", "True, or false?")) == "tiny"


def test_the_first_of_several_items_is_named():
    a, b = (" ".join(WORDS[at : at + 20]) for at in (0, 100))
    found = index([("a", [a]), ("b", [b]), ("again", [a]), ("short b", [" ".join(WORDS[100:109])])])
    assert found.match(row(b, a)) == "a" and found.match(row(b)) == "b"


def test_evaluation_sets_are_read_in_all_their_forms(tmp_path):
    records = [
        {"question": text(random.Random(1), 20), "choices": ["a"], "answer": 0},
        {"id": "q2", "question": "b"},
        {"id": 0, "question": "c"},
        {"id": "", "question": "d"},
    ]
    (tmp_path / "one.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    pq.write_table(pa.table({"id": [7], "instruction": ["Add."], "input": ["1 2"]}), tmp_path / "two.parquet")
    items = list(read_eval_items(config([str(tmp_path)])))
    file = f"{tmp_path}/one.jsonl"
    assert [name for name, _ in items] == [f"{file}:1", "q2", "0", f"{file}:7", "7"]
    assert [texts for _, texts in items] == [[records[0]["question"]], ["b"], ["c"], ["d"], ["Add. 1 2"]]
    chosen = read_eval_items(config([str(tmp_path / "two.parquet")], columns=["input", "instruction"]))
    assert list(chosen) == [("7", ["1 2", "Add."])]


@pytest.mark.parametrize(
    ("content", "more", "says"),
    [
        (None, {}, r"ingest.decontaminate.files .*no such file"),
        ("{broken", {}, r"evals.jsonl:1: bad_json"),
        ("[1]", {}, r"evals.jsonl:1: not an object"),
        ('{"stem": "What?"}', {}, r"ingest.decontaminate.columns \(it has stem\)"),
        ('{"question": "What?"}', {"columns": ["stem"]}, r"no text in stem"),
        ('{"question": "What?"}', {}, r"none of the 1 items has 8 words"),
    ],
)
def test_faults_are_one_clear_line(tmp_path, content, more, says):
    path = tmp_path / "evals.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=says):
        read_eval_index(config([str(path)], **more))


def test_a_refused_row_takes_part_in_nothing(tmp_path):
    item = " ".join(WORDS[:20])
    lines = [{"prompt": item, "completion": "c"}, {"prompt": item + " x", "completion": "c"}, {"prompt": "p"}]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    unit = Unit(str(path), "jsonl", 0, path.stat().st_size, "pool")
    settings_ = IngestConfig(near_duplicates={})
    reader = Reader(settings_, 0)
    args = (0, unit, reader, np.array([0]), index([("q", [item])]), settings_.near_duplicates, 2)
    matches, held, *tables = match_unit(*args)
    assert [(m.row, m.reason, m.of) for m in matches] == [(1, "contaminated", "q")]
    assert held.ids == [] and sum(map(len, tables)) == 0


def test_a_real_pool_holds_eight_questions_of_mmlu_and_planted_ones_are_found(shared_data):
    evals = read_eval_index(config([str(shared_data / "mmlu_dev.jsonl")]))
    (unit,), _ = list_units(str(shared_data / "pool_5k.jsonl"), 1 << 30)
    reader = Reader(IngestConfig(), 0)
    rows = [r for raw in reader.items(unit) if isinstance(r := reader.row(raw, unit), PoolRow)]
    found = {one.id: match for one in rows if (match := evals.match(one))}
    assert found["pool-00700"] == "mmlu-medical_genetics-204"  # word for word
    assert found["pool-03148"] == "mmlu-high_school_computer_science-102"
    assert len(found) == 8  # each was read: all are the question itself
    planted = list(read_eval_items(config([str(shared_data / "mmlu_dev.jsonl")])))
    long = [(name, texts[0]) for name, texts in planted if len(texts[0].split()) >= 20]
    assert len(long) > 50
    assert all(evals.match(row(f"{rows[0].prompt} {question}")) for _, question in long)
