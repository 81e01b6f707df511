"""Decontamination by embedding without Ray: what is close, what is refused, how evaluation sets are read."""

import json

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup.augment.curate import split_rejected
from lm_mixup.augment.dedup import decontaminate_embeddings
from lm_mixup.augment.dedup.decontaminate_embeddings import EvalVectors, read_distinct_items, reject_similar
from lm_mixup.augment.embed import reject_contaminated, vectors_of
from lm_mixup.config import Config, EmbedDecontaminateConfig, EmbedderConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.nearest import nearest
from lm_mixup.core.task_types import write_input
from lm_mixup.models.embedder import Embedder


def unit(degrees):
    angles = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def rows_of(count):
    return pa.table(
        {
            "id": [f"r{i}" for i in range(count)],
            "prompt": [f"p{i}" for i in range(count)],
            "completion": [f"c{i}" for i in range(count)],
        }
    )


EVALS = EvalVectors(["a", "b"], unit([0, 90]))


def test_rows_within_the_angle_are_refused_with_the_item_and_the_cosine():
    keep, refused, reached = reject_similar(rows_of(4), unit([10, 40, 95, 200]), EVALS, 0.9)
    assert keep.tolist() == [False, True, False, True]
    assert refused["id"].to_pylist() == ["r0", "r2"] and refused["match"].to_pylist() == ["a", "b"]
    assert refused["similarity"].to_pylist() == pytest.approx([np.cos(np.pi / 18), np.cos(np.pi / 36)])
    assert set(refused["reason"].to_pylist()) == {"contaminated_embedding"}
    assert refused["completion"].to_pylist() == ["c0", "c2"]  # to see for oneself
    assert reached == {"eval_similarity_0.7": 3, "eval_similarity_0.8": 2, "eval_similarity_0.9": 2}


def test_the_threshold_itself_is_refused_and_of_equal_items_the_first_is_named():
    evals = EvalVectors(["first", "again"], unit([0, 0]))
    keep, refused, _ = reject_similar(rows_of(1), unit([0]), evals, 1.0)
    assert not keep[0] and refused["match"].to_pylist() == ["first"]


def test_a_part_loses_no_row_and_keeps_its_order_even_if_nothing_stays():
    vectors = unit([10, 40, 95, 200])
    part = reject_contaminated(rows_of(4), vectors, EVALS, 0.9)
    assert part.rows_in == 4 == part.rows.num_rows + part.rejected.num_rows
    assert part.rows["id"].to_pylist() == ["r1", "r3"]
    np.testing.assert_allclose(vectors_of(part.rows), vectors[[1, 3]], atol=1e-3)
    nothing = reject_contaminated(rows_of(4), vectors, EvalVectors(["x"], unit([45])), -1.0)
    assert nothing.rows.num_rows == 0 and nothing.rows.schema == part.rows.schema
    assert vectors_of(nothing.rows).shape == (0, 2)


def test_what_was_refused_leaves_the_rated_rows_and_says_why():
    rated = rows_of(4).append_column("score", pa.array([5, None, 3, 4], pa.int8()))
    _, refused, _ = reject_similar(rows_of(4), unit([10, 40, 95, 200]), EVALS, 0.9)
    kept, left_out = split_rejected(rated, refused)
    assert kept["id"].to_pylist() == ["r1", "r3"] and kept.schema == rated.schema
    assert left_out["id"].to_pylist() == ["r0", "r2"] and left_out["score"].to_pylist() == [5, 3]
    assert left_out["match"].to_pylist() == ["a", "b"] and left_out["similarity"].null_count == 0


def evals_file(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def test_items_are_their_columns_together_and_equal_ones_count_once(tmp_path):
    records = [
        {"id": "q1", "question": "What is tungsten?", "answer": "A metal."},
        {"id": "q2", "question": "What is tungsten?", "answer": "An element."},
        {"id": "q3", "question": " ", "answer": ""},
    ]
    path = evals_file(tmp_path / "evals.jsonl", *records)
    assert read_distinct_items(EmbedDecontaminateConfig(files=[path])) == ([("q1", "What is tungsten?")], 3)
    both = EmbedDecontaminateConfig(files=[path], columns=["question", "answer"])
    items, count = read_distinct_items(both)
    assert count == 3 and items == [
        (record["id"], f"{record['question']}\n{record['answer']}") for record in records[:2]
    ]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"stem": "What?"}, r"embed.decontaminate.columns \(it has stem\)"),
        ({"question": " "}, r"none of the 1 items has a text"),
    ],
)
def test_faults_are_one_clear_line(tmp_path, record, says):
    path = evals_file(tmp_path / "evals.jsonl", record)
    with pytest.raises(InputError, match=says):
        read_distinct_items(EmbedDecontaminateConfig(files=[path]))
    with pytest.raises(InputError, match=r"embed.decontaminate.files .*no such file"):
        read_distinct_items(EmbedDecontaminateConfig(files=[str(tmp_path / "none.jsonl")]))


def test_more_items_than_a_machine_should_hold_are_refused(tmp_path, monkeypatch):
    path = evals_file(tmp_path / "evals.jsonl", *({"question": f"What is {i}?"} for i in range(4)))
    monkeypatch.setattr(decontaminate_embeddings, "MOST_ITEMS", 3)
    with pytest.raises(InputError, match="more than 3 different items"):
        read_distinct_items(EmbedDecontaminateConfig(files=[path]))


def test_files_default_to_those_of_the_ngrams_and_must_be_somewhere():
    ngrams = {"decontaminate": {"files": ["a.jsonl"]}}
    assert Config.model_validate({"ingest": ngrams}).eval_files() == []
    assert Config.model_validate({"ingest": ngrams, "embed": {"decontaminate": {}}}).eval_files() == [
        "a.jsonl"
    ]
    own = {"decontaminate": {"files": ["b.jsonl"]}}
    assert Config.model_validate({"ingest": ngrams, "embed": own}).eval_files() == ["b.jsonl"]
    with pytest.raises(ValueError, match=r"embed.decontaminate.files: name evaluation sets"):
        Config.model_validate({"embed": {"decontaminate": {}}})


QUESTION = "Which planet of the solar system has the greatest number of known moons?"
PARAPHRASE = ("In our solar system, which planet has the most known moons?", "Saturn")
RELATED = ("How far is the planet Mars from the Sun?", "About 228 million km.")


def test_a_paraphrase_is_found_and_a_row_on_the_same_matter_stays():
    embedder = Embedder(EmbedderConfig())
    evals = EvalVectors(["moons"], embedder.embed([QUESTION]))
    texts = [write_input(*pair) for pair in (PARAPHRASE, RELATED)]
    least = EmbedDecontaminateConfig().min_similarity
    keep, refused, _ = reject_similar(rows_of(2), embedder.embed(texts), evals, least)
    assert keep.tolist() == [False, True] and refused["match"].to_pylist() == ["moons"]


def test_a_real_pool_holds_four_questions_of_mmlu_and_little_else_comes_near(shared_data):
    expected = {
        "pool-00151": "mmlu-jurisprudence-",
        "pool-00166": "mmlu-formal_logic-",
        "pool-00700": "mmlu-medical_genetics-204",
        "pool-03148": "mmlu-high_school_computer_science-102",
    }
    items, _ = read_distinct_items(EmbedDecontaminateConfig(files=[str(shared_data / "mmlu_dev.jsonl")]))
    chosen = [
        item for n, item in enumerate(items) if n % 4 == 0 or item[0].startswith(tuple(expected.values()))
    ]
    with (shared_data / "pool_5k.jsonl").open(encoding="utf-8") as file:
        rows = [row for n, row in enumerate(map(json.loads, file)) if n < 40 or row["id"] in expected]
    embedder = Embedder(EmbedderConfig())
    evals = EvalVectors([name for name, _ in chosen], embedder.embed([text for _, text in chosen]))
    vectors = embedder.embed([write_input(row["prompt"], row["completion"]) for row in rows])
    table = pa.Table.from_pylist(
        [{name: row[name] for name in ("id", "prompt", "completion")} for row in rows]
    )
    keep, refused, _ = reject_similar(table, vectors, evals, 0.8)
    found = dict(zip(refused["id"].to_pylist(), refused["match"].to_pylist(), strict=True))
    assert found.keys() == expected.keys()
    assert all(found[row].startswith(item) for row, item in expected.items())
    assert nearest(vectors, evals.vectors)[1][keep].max() < 0.7
