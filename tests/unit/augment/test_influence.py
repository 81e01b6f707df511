"""Influence: cosines of gradients, on a nano model made here; against gradients that are not sketched."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from lm_mixup.augment.influence import Gradients, means_by_source, score, target_rows, unit
from lm_mixup.config import LessConfig, ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.demo.nano import create_nano

ROWS = [
    ("What is gold?", "Gold is a metal with the atomic number 79."),
    ("What is silver?", "Silver is a metal with the atomic number 47."),
    ("Name a fruit.", "An apple."),
    ("Say hello.", "Hello there, my friend!"),
]
CONFIG = LessConfig(dimension=4096, rank=4, max_length=128)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelConfig:
    texts = [" ".join(row) for row in ROWS] * 8
    folder = create_nano(tmp_path_factory.mktemp("influence") / "nano", texts, seed=1, vocab_size=320)
    return ModelConfig(path=str(folder))


@pytest.fixture(scope="module")
def gradients(model: ModelConfig) -> Gradients:
    return Gradients(model, CONFIG, seed=0)


def vector(gradients: Gradients, row: tuple[str, str]) -> np.ndarray:
    return gradients.of(*gradients.encode(*row))


def exact(gradients: Gradients, row: tuple[str, str]) -> np.ndarray:
    """The whole gradient of the B matrices, by `backward`."""
    asked, answer = gradients.encode(*row)
    ids = torch.tensor([asked + answer])
    labels = torch.tensor([[-100] * len(asked) + answer])
    gradients._policy.zero_grad()
    gradients._policy(input_ids=ids, labels=labels).loss.backward()
    return unit(torch.cat([p.grad.flatten() for p in gradients._trained.values()]).numpy())


def test_cosines_of_sketches_are_those_of_the_gradients(gradients):
    sketched = np.stack([vector(gradients, row) for row in ROWS])
    whole = np.stack([exact(gradients, row) for row in ROWS])
    np.testing.assert_allclose(sketched @ sketched.T, whole @ whole.T, atol=0.08)
    assert np.linalg.norm(sketched, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_same_seed_gives_the_same_vectors_in_another_process_or_actor(model, gradients):
    again = vector(Gradients(model, CONFIG, seed=0), ROWS[0])
    np.testing.assert_allclose(again, vector(gradients, ROWS[0]), atol=1e-6)
    other = vector(Gradients(model, CONFIG, seed=1), ROWS[0])
    assert abs(float(other @ again)) < 0.5


def test_a_row_of_the_target_helps_most_and_every_row_is_accounted_for(gradients):
    wanted = means_by_source([("a", vector(gradients, ROWS[0]))])
    rows = [*ROWS, ("", ""), ("long", "word " * 400)]
    table = pa.table({"prompt": [p for p, _ in rows], "completion": [c for _, c in rows]})
    result = score(table, gradients, wanted)
    found = result.rows["influence"].to_pylist()
    assert found[0] == pytest.approx(1, abs=1e-5) and max(found[1:]) < 0.99
    assert found[1] > found[2]  # silver in the words of gold
    assert result.rejected["reason"].to_pylist() == ["empty", "too_long"]
    assert result.rows_in == result.rows.num_rows + result.rejected.num_rows
    half = score(table.slice(2), gradients, wanted).rows["influence"].to_pylist()
    assert half == pytest.approx(found[2:], abs=1e-6)


def test_the_best_of_several_sources_counts():
    vectors = [("b", [0.0, 1.0]), ("a", [2.0, 0.0]), ("a", [1.0, 0.0])]
    wanted = means_by_source([(source, np.array(vector)) for source, vector in vectors])
    assert wanted.tolist() == [[1, 0], [0, 1]]
    assert (wanted @ unit(np.array([0.6, 0.8]))).max() == pytest.approx(0.8)
    assert unit(np.zeros(3)).tolist() == [0, 0, 0]


def test_target_rows_are_a_seeded_sample_of_what_can_be_read(tmp_path):
    file = tmp_path / "target.jsonl"
    lines = [json.dumps({"instruction": f"q{n}", "output": f"a{n}"}) for n in range(30)]
    file.write_text("\n".join([*lines, "{broken"]))
    config = LessConfig(target=str(file), target_rows=8)
    chosen = target_rows(config, 0)
    assert len(set(chosen)) == 8 and chosen == target_rows(config, 0) != target_rows(config, 1)
    assert all(source == "target" for source, _, _ in chosen)


@pytest.mark.parametrize(
    ("content", "said"), [(None, r"^select.less.target: name a file"), ("{}\n", r"has no usable row$")]
)
def test_a_target_that_cannot_be_used_is_said(tmp_path, content, said):
    file = tmp_path / "t.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=said):
        target_rows(LessConfig(target=str(file) if content is not None else None), 0)
