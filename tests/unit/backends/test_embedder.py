"""The real packaged MiniLM: shapes, norms, order and the errors of the user."""

from __future__ import annotations

import numpy as np
import pytest

from lm_mixup.backends.embedder import Embedder, dtype_of, resolve_path
from lm_mixup.config import EmbedderConfig
from lm_mixup.errors import InputError


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


def test_order_is_kept_although_batches_are_sorted_by_length(embedder):
    texts = [
        "a",
        "a longer sentence about the boiling point of water " * 3,
        "Paris",
        "iron rusts in air",
    ]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_batches_hold_texts_of_like_length_in_tokens_and_little_padding(embedder, monkeypatch):
    dense, wide = "1 2 3 4 5 6 7 8 9", "characteristically straightforward"  # 9 words, and 2 of more letters
    batches = []
    encode = embedder._model.encode
    monkeypatch.setattr(
        embedder._model, "encode", lambda texts, **kwargs: batches.append(texts) or encode(texts, **kwargs)
    )
    texts = [f"{text} {n}" for n in range(4) for text in (dense, wide)]
    vectors = embedder.embed(texts)
    lengths = embedder.lengths(texts)
    assert lengths[0] > lengths[1] and len(dense) < len(wide)
    assert batches == [[f"{text} {n}" for n in pair] for text in (dense, wide) for pair in ((0, 1), (2, 3))]
    np.testing.assert_allclose(vectors[3], embedder.embed([texts[3]])[0], atol=1e-5)
    assert embedder.lengths(["a b c " * 1000])[0] == 256


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
    assert dtype_of(EmbedderConfig(dtype=given, num_gpus=num_gpus)) == used


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
    by_folder = Embedder(EmbedderConfig(path=resolve_path("minilm")))
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
    shutil.copytree(Path(resolve_path("minilm")), folder)
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
