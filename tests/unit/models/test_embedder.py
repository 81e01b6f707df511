"""The real packaged MiniLM: shapes, norms, order and the errors of the user."""

from __future__ import annotations

import numpy as np
import pytest

from lm_mixup.config import EmbedderConfig
from lm_mixup.core.errors import InputError
from lm_mixup.models.embedder import Embedder, batches, padded_lengths
from lm_mixup.models.resolve import embedder_folder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(EmbedderConfig(batch_size=2))


def test_vectors_are_unit_and_of_the_stated_dimension(embedder):
    vectors = embedder.embed(["Iron is a metal.", "", "The capital of France is Paris."])
    assert vectors.shape == (3, embedder.dimension) == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_rows(embedder):
    assert embedder.embed([]).shape == (0, embedder.dimension)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vector_does_not_depend_on_the_texts_of_its_batch(dtype):
    """To the bit: neither on how many there are, nor on how long, nor on their order."""
    few, many = (Embedder(EmbedderConfig(dtype=dtype, batch_size=size)) for size in (3, 64))
    words = "iron rusts in air, 26 of the boiling points of water are not x**2"
    texts = [f"{words[n % 5 : n % 5 + 4 + 7 * (n % 9)]} {n}" for n in range(24)]
    together = many.embed(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    assert (few.embed([texts[n] for n in order]) == together[order]).all()
    assert (np.concatenate([few.embed([text]) for text in texts[:6]]) == together[:6]).all()


def test_padding_is_little_and_a_batch_holds_one_length():
    assert padded_lengths(np.array([1, 8, 9, 63, 65, 127, 129, 255, 300, 513])).tolist() == [
        8, 8, 16, 64, 72, 128, 144, 256, 320, 576,
    ]  # fmt: skip
    lengths = np.random.default_rng(0).integers(1, 9_000, 3_000)
    padded = padded_lengths(lengths)
    assert (padded >= lengths).all() and (padded <= np.maximum(1.125 * lengths, lengths + 7)).all()
    assert (padded_lengths(padded) == padded).all()
    assert len(np.unique(padded)) < 80
    found = list(batches(padded, 16))
    assert sorted(np.concatenate(found).tolist()) == list(range(3_000))
    assert all(len(set(padded[rows])) == 1 and len(rows) <= 16 for rows in found)
    firsts = [padded[rows[0]] for rows in found]
    assert firsts == sorted(firsts, reverse=True)
    assert list(batches(np.zeros(0, np.int64), 4)) == []


def test_texts_past_max_length_are_padded_no_further(embedder, monkeypatch):
    told = []
    encode = embedder._model.encode
    monkeypatch.setattr(
        embedder._model, "encode", lambda texts, **kwargs: told.append(kwargs) or encode(texts, **kwargs)
    )
    embedder.embed(["a b c " * 1000, "a"])
    assert [one["processing_kwargs"]["text"]["max_length"] for one in told] == [256, 8]
    assert embedder.lengths(["a b c " * 1000]).tolist() == [256]


def test_a_lower_precision_is_close_and_counts_as_another_embedder(embedder):
    texts = ["Iron is a metal.", "The capital of France is Paris.", "x = [y**2 for y in range(10)]"]
    config = EmbedderConfig(dtype="bfloat16")
    low = Embedder(config).embed(texts)
    assert low.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(low, axis=1), 1.0, atol=1e-5)
    strayed = 1 - (low * embedder.embed(texts)).sum(axis=1)
    assert 1e-7 < strayed.max() < 1e-3  # it is another precision, and no other model
    assert config.identity() != EmbedderConfig().identity()


@pytest.mark.parametrize(
    ("given", "num_gpus", "used"),
    [
        ("auto", 0, "float32"),
        ("auto", 0.5, "float16"),
        ("bfloat16", 1, "bfloat16"),
        ("float32", 1, "float32"),
    ],
)
def test_precision(given, num_gpus, used):
    config = EmbedderConfig(dtype=given, num_gpus=num_gpus)
    assert config.precision() == config.identity()["dtype"] == used


def test_equal_texts_get_bit_equal_vectors(embedder):
    vectors = embedder.embed(["iron", "a longer text about gold and silver", "iron"])
    assert (vectors[0] == vectors[2]).all()


def test_related_texts_are_closer_than_unrelated_ones(embedder):
    iron, steel, poem = embedder.embed(
        [
            "What is the melting point of iron?",
            "At what temperature does iron melt?",
            "Write a poem about love.",
        ]
    )
    assert iron @ steel > 0.7 > 0.3 > iron @ poem


def test_text_past_max_length_is_cut():
    short = Embedder(EmbedderConfig(max_length=8))
    head = "one two three four five six"
    vectors = short.embed([f"{head} seven eight nine", f"{head} cats dogs mice", head])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_the_packaged_model_loads_by_folder_too(embedder):
    by_folder = Embedder(EmbedderConfig(path=embedder_folder("minilm")))
    np.testing.assert_allclose(by_folder.embed(["gold"]), embedder.embed(["gold"]), atol=1e-6)


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "a/b/c"])
def test_a_missing_folder_is_one_clear_line(path):
    with pytest.raises(InputError, match="no such folder") as caught:
        Embedder(EmbedderConfig(path=path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        Embedder(EmbedderConfig(path=str(tmp_path)))


def test_a_folder_that_is_no_model_is_one_clear_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        Embedder(EmbedderConfig(path=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_pickled_checkpoint_is_not_read(tmp_path, embedder):
    import shutil
    from pathlib import Path

    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(Path(embedder_folder("minilm")), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        Embedder(EmbedderConfig(path=str(folder)))


def test_a_gpu_that_is_not_there_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is visible")
    with pytest.raises(InputError, match="no GPU"):
        Embedder(EmbedderConfig(num_gpus=1))
