"""The library stage and the reward actors, with the real Ray and the real MiniLM."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from reward_server import lengths, serving
from safetensors.numpy import load_file, save_file
from stage_rows import put_part

from lm_mixup.config import EmbedderConfig, LibraryConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir, summarise
from lm_mixup.core.schemas import content_id
from lm_mixup.core.task_types import Qa, Tfq, write_answer, write_input, write_output
from lm_mixup.models.resolve import embedder_folder
from lm_mixup.rewards.library import library, load_library
from lm_mixup.rewards.workers import RewardBatch, RewardFailed, RewardScores, RewardWorkers

ELEMENTS = {
    "hydrogen": ("H", 1, "a gas"),
    "helium": ("He", 2, "a noble gas"),
    "carbon": ("C", 6, "a nonmetal"),
    "oxygen": ("O", 8, "a gas"),
    "neon": ("Ne", 10, "a noble gas"),
    "iron": ("Fe", 26, "a transition metal"),
    "copper": ("Cu", 29, "a transition metal"),
    "zinc": ("Zn", 30, "a transition metal"),
    "silver": ("Ag", 47, "a transition metal"),
    "tin": ("Sn", 50, "a post-transition metal"),
    "gold": ("Au", 79, "a transition metal"),
    "mercury": ("Hg", 80, "a liquid metal"),
}
BASE = RewardsConfig(num_actors=1, batch_size=8, timeout_s=300, max_retries=1, neighbors=8)


def good_qa(name: str) -> str:
    symbol, number, kind = ELEMENTS[name]
    answer = (
        f"{name.capitalize()} is {kind} with the symbol {symbol}. Its atomic number is {number}, so each of "
        f"its atoms has {number} protons in the nucleus."
    )
    return write_answer(Qa(f"What is {name}, and what are its symbol and atomic number?", answer))


def poor_qa(name: str, variant: int) -> str:
    answer = ["It is one.", "not sure, maybe a thing", "Something in the table I think."][variant]
    return write_answer(Qa(["what is it", f"{name}?", "tell me"][variant], f"{answer} ({name[:3]})"))


def sources_of(name: str) -> list[str]:
    symbol, number, kind = ELEMENTS[name]
    return [
        write_input(f"what is {name}", f"It is {kind}."),
        write_input(f"symbol of {name}?", symbol),
        write_input(
            f"atomic number of {name}", f"{number}, each of its atoms has {number} protons in the nucleus"
        ),
    ]


def statement(name: str, holds: bool) -> str:
    return write_answer(Tfq(f"The element {name} has {ELEMENTS[name][1] + (not holds)} protons.", holds))


def rated(texts: list[tuple[str, str, str | None, int | None]], split: str = "sft") -> pa.Table:
    rows = [
        {
            "id": content_id(answer),
            "task_type": kind,
            "answer": answer,
            "entity": name,
            "score": score,
            "split": split,
        }
        for kind, answer, name, score in texts
    ]
    names = ["id", "task_type", "answer", "entity", "split"]
    return pa.Table.from_pylist(rows, pa.schema([*((n, pa.string()) for n in names), ("score", pa.int8())]))


def write_inputs(run: RunDir) -> None:
    good = [("qa", good_qa(n), n, 5) for n in ELEMENTS] + [
        ("tfq", statement(n, True), n, 4) for n in ELEMENTS
    ]
    poor = [("qa", poor_qa(n, v), n, v % 2) for n in ELEMENTS for v in range(3)]
    poor += [("tfq", statement(n, False), n, 1) for n in ELEMENTS]
    leak = [("qa", "Q: leaked?\nA: from the GRPO split.", "gold", 5)]
    tables = {
        "generate": [rated(good), rated(leak, split="grpo")],
        "degrade": [rated(poor), rated([("qa", "Q: unrated?\nA: yes.", "gold", None)])],
    }
    for name, parts in tables.items():
        for number, rows in enumerate(parts):
            put_part(run.stage(name), number, rows)


def build(run: RunDir, embedder: EmbedderConfig, rows: int = 2000):
    stage = run.stage("library")
    stage.begin("f")
    sources = run.stage("generate"), run.stage("degrade")
    outcome = library(*sources, stage, LibraryConfig(rows=rows), BASE, embedder, seed=0)
    stage.finish(summarise(stage, "f", {}, 0.0, outcome))
    return stage


@pytest.fixture(scope="module")
def made(ray_session, tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("rewards"))
    write_inputs(run)
    return build(run, EmbedderConfig())


@pytest.fixture(scope="module")
def batch():
    names = list(ELEMENTS)[:8]
    completions, references, task_types, inputs = [], [], [], []
    for place, name in enumerate(names):
        texts = [
            write_output("The inputs agree.", good_qa(name)),
            write_output("", poor_qa(name, place % 3)),
            write_output("", "no marks here"),
            f"<answer>{good_qa(name)}</answer>",
        ]
        completions += texts
        references += [good_qa(name)] * len(texts)
        inputs += [sources_of(name)] * len(texts)
        task_types += ["qa"] * len(texts)
    completions += [write_output("", statement("neon", True))]
    references += [statement("neon", True)]
    inputs += [[write_input("True or false? The element neon has 10 protons.", "True")]]
    task_types += ["tfq"]
    groups = [i // 4 for i in range(len(completions))]
    return RewardBatch(task_types, completions, references, groups, inputs)


@pytest.fixture(scope="module")
def expected(made, batch):
    workers = RewardWorkers(made, BASE, EmbedderConfig())
    yield workers.score(batch)
    workers.shutdown()


def assert_equal(got, expected):
    np.testing.assert_array_equal(got.total, expected.total)
    for name, values in expected.components.items():
        np.testing.assert_array_equal(got.components[name], values)


def test_the_library_accounts_for_every_row(made):
    manifest = made.manifest()
    assert manifest.rows_in == 74
    assert manifest.rows_used == manifest.rows_out == 72
    assert manifest.left_out == {"other_split": 1, "unrated": 1}
    assert manifest.metrics["held_out"]["qa"] == {"agreement": 1.0, "separation": 1.0}
    rows = made.read()
    assert rows["score"].null_count == 0
    assert "leaked" not in " ".join(rows["answer"].to_pylist())


def test_the_library_is_safetensors_with_unit_vectors_in_the_order_of_the_rows(made):
    tensors = load_file(made.local / "qa.safetensors")
    assert tensors["embeddings"].shape == (48, 384)
    np.testing.assert_allclose(np.linalg.norm(tensors["embeddings"], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(tensors["transition"].sum(axis=1), 1.0)
    rows = made.read().to_pylist()
    assert [row["score"] for row in rows if row["task_type"] == "qa"] == tensors["scores"].tolist()


def test_the_library_refuses_what_does_not_fit(made):
    with pytest.raises(InputError, match="no rated samples of task type mcq"):
        load_library(made, EmbedderConfig(), ["qa", "mcq"])
    with pytest.raises(InputError, match="other embedder settings"):
        load_library(made, EmbedderConfig(max_length=64))
    assert set(load_library(made, EmbedderConfig())) == {"qa", "tfq"}


def test_a_damaged_library_is_refused(made, tmp_path):
    copy = RunDir(tmp_path)
    shutil.copytree(made.local, tmp_path / "library")
    (tmp_path / "library" / "qa.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="was changed since it was written"):
        load_library(copy.stage("library"), EmbedderConfig(), ["qa"])
    (tmp_path / "library" / "library.json").unlink()
    with pytest.raises(InputError, match="run the stage `library` first"):
        RewardWorkers(copy.stage("library"), BASE, EmbedderConfig())


def test_rewards_tell_good_from_poor(expected, batch):
    parts = {name: values[:32].reshape(8, 4) for name, values in expected.components.items()}
    np.testing.assert_array_equal(parts["format"], np.tile([1.0, 1.0, 0.5, 0.0], (8, 1)))
    np.testing.assert_array_equal(parts["alignment"], np.tile([1.0, 0.0, 0.0, 0.0], (8, 1)))
    np.testing.assert_array_equal(parts["quality"], np.tile([1.0, 0.0, 0.0, 0.0], (8, 1)))
    totals = expected.total[:32].reshape(8, 4)
    faithfulness = parts["faithfulness"]
    assert (faithfulness[:, 0] > 0.9).all() and (faithfulness[:, 1:] < 0.4).all()
    np.testing.assert_allclose(totals - 0.5 * faithfulness, np.tile([0.5, 0.1, 0.05, 0.0], (8, 1)), atol=1e-9)


def test_two_actors_score_as_one_and_a_killed_one_is_replaced(ray_session, made, batch, expected):
    workers = RewardWorkers(made, BASE.model_copy(update={"num_actors": 2}), EmbedderConfig())
    try:
        ray_session.kill(workers._actors[0])  # the calls that wait for it fail
        assert_equal(workers.score(batch), expected)
        tasks, run = [], workers._map
        workers._map = lambda method, calls: tasks.extend([method] * len(calls)) or run(method, calls)
        assert_equal(workers.score(batch), expected)
        assert set(tasks) == {"score"}, "references are embedded once a run"
        assert all(held.base is None for held in workers._references.values()), "views pin Ray's objects"
        assert workers.score(RewardBatch([], [], [], [])).total.shape == (0,)
        with pytest.raises(InputError, match="task type cs"):
            workers.score(RewardBatch(["cs"], ["x"], ["C: a\nS: b"], [0], [["i"]]))
    finally:
        workers.shutdown()


def with_custom(**settings) -> RewardsConfig:
    return RewardsConfig.model_validate(BASE.model_dump() | {"num_actors": 2, "custom": {"own": settings}})


def test_a_custom_reward_is_computed_in_the_actors_and_joins_the_sum(made, batch, expected):
    with serving(lengths) as endpoint:
        rewards = with_custom(url=endpoint.url, weight=2.0, task_weights={"tfq": 0.0})
        workers = RewardWorkers(made, rewards, EmbedderConfig())
        try:
            scores = workers.score(batch)
        finally:
            workers.shutdown()
    assert_equal(RewardScores(expected.total, scores.components), expected)
    own = np.array([len(text) for text in batch.completions], dtype=np.float64)
    np.testing.assert_array_equal(scores.components["own"], own)
    np.testing.assert_allclose(
        scores.total, expected.total + 2.0 * own * (np.array(batch.task_types) == "qa")
    )
    assert len(endpoint.seen) == 5  # four chunks of whole groups, and the rest
    assert all(set(seen.body["groups"]).isdisjoint(other.body["groups"])
               for seen, other in itertools.combinations(endpoint.seen, 2))  # fmt: skip


def test_a_custom_reward_that_fails_stops_the_run_and_costs_no_actor(made, batch):
    rewards = with_custom(path="builtins:len", weight=1.0, max_retries=0)
    workers = RewardWorkers(made, rewards, EmbedderConfig())
    actors = list(workers._actors)
    try:
        message = r"custom\.own: builtins:len returned a int instead of a list of numbers; tried once$"
        with pytest.raises(InputError, match=message):
            workers.score(batch)
        assert workers._actors == actors
    finally:
        workers.shutdown()


def test_an_embedder_that_fails_stops_the_run(ray_session, made, batch, tmp_path):
    """A real model whose weights are not numbers: every embedding fails, and no completion gets a default."""
    folder = tmp_path / "model"
    shutil.copytree(embedder_folder("minilm"), folder)
    embedder = EmbedderConfig(path=str(folder))
    run = RunDir(tmp_path / "run")
    write_inputs(run)
    shutil.copytree(made.local, tmp_path / "run" / "library")
    info = json.loads((tmp_path / "run/library/library.json").read_text())
    from lm_mixup.core.run_dir import fingerprint

    info |= {"embedder": str(folder), "embedder_fingerprint": fingerprint(embedder.identity())}
    run.write_json("library/library.json", info)
    weights = load_file(folder / "model.safetensors")
    save_file({n: np.full_like(w, np.nan) if w.dtype.kind == "f" else w for n, w in weights.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    workers = RewardWorkers(run.stage("library"), BASE.model_copy(update={"max_retries": 0}), embedder)
    try:
        with pytest.raises(RewardFailed, match=r"failed 1 times; the last time: .*not finite"):
            workers.score(batch)
    finally:
        workers.shutdown()
    shutil.rmtree(folder)
    workers = RewardWorkers(run.stage("library"), BASE, embedder)
    try:
        with pytest.raises(InputError, match="no such folder"):
            workers.score(batch)
    finally:
        workers.shutdown()


def test_actors_that_cannot_be_placed_are_not_waited_for_for_ever(made, batch):
    wanting = BASE.model_copy(update={"num_cpus": 999.0, "timeout_s": 1.0, "max_retries": 0})
    workers = RewardWorkers(made, wanting, EmbedderConfig())
    try:
        with pytest.raises(RewardFailed, match=r"no answer in 1 s .*asks for 999 CPUs"):
            workers.score(batch)
    finally:
        workers.shutdown()
