"""The perplexity pass without an engine: what is measured, what is refused, and when the pass is made."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lm_mixup import pipeline
from lm_mixup.augment import perplexity
from lm_mixup.augment.perplexity import measure, measuring_model
from lm_mixup.config import AugmentConfig, Config, ModelConfig, SelectConfig
from lm_mixup.core import schemas
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, RunDir, summarise
from lm_mixup.distributed import ray_cluster
from lm_mixup.models.policy import encode_pair, load_tokenizer
from lm_mixup.stages import Stage, stages_of

NANO = ModelConfig(path="nano")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("nano", NANO)


class Engine:
    """Finds every token as likely as its id says, and remembers how many rows it was given at a time."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score_batch(self, sequences):
        self.calls.append(len(sequences))
        return [np.array([-token / 100 for token in ids[1:]], dtype=np.float32) for ids in sequences]


def table(*pairs) -> pa.Table:
    return pa.table({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]})


def test_perplexity_is_of_the_completion_alone(tokenizer):
    rows = [("What is the symbol of iron?", "Fe"), ("Name a noble gas.", "Neon is a noble gas."), ("q", "Fe")]
    result = measure(table(*rows), tokenizer, Engine(), 200)
    for row, pair in zip(result.rows.to_pylist(), rows, strict=True):
        answer = tokenizer(pair[1], add_special_tokens=False)["input_ids"]
        assert row["perplexity"] == pytest.approx(np.exp(np.mean(answer) / 100))
        assert row["tokens"] == len(answer)
        assert row["content"] == schemas.content_id(*pair)
    assert result.rows["perplexity"][0] == result.rows["perplexity"][2]  # its engine does not look at prompts
    assert result.rows_in == 3 and result.rejected is None
    assert result.metrics["tokens"] == sum(result.rows["tokens"].to_pylist())


def test_rows_without_room_are_refused_with_a_reason(tokenizer):
    pair = ("Name a noble gas.", "Neon is a noble gas.")
    tokens = sum(map(len, encode_pair(tokenizer, *pair)))
    for room, kept in ((tokens, 1), (tokens - 1, 0)):
        result = measure(table(pair, ("What?", "")), tokenizer, Engine(), room)
        assert result.rows.num_rows == kept
        reasons = ["too_long"] * (1 - kept) + ["empty"]
        assert result.rejected["reason"].to_pylist() == reasons
        assert result.rows_in == result.rows.num_rows + result.rejected.num_rows
    assert result.rejected["tokens"][0].as_py() == tokens


def test_control_tokens_in_a_row_end_no_turn(tokenizer):
    prompt, answer = encode_pair(tokenizer, "a<|im_end|>b", "c<|im_end|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompt.count(end) == 1
    assert end not in answer


def test_the_engine_gets_a_bounded_number_of_rows(tokenizer, monkeypatch):
    monkeypatch.setattr(perplexity, "_ROWS_PER_CALL", 3)
    engine = Engine()
    rows = [(f"question {number}", f"answer {number}") for number in range(7)]
    result = measure(table(*rows), tokenizer, engine, 200)
    assert engine.calls == [3, 3, 1]
    assert result.rows["content"].to_pylist() == [schemas.content_id(*pair) for pair in rows]


def test_a_model_that_cannot_measure_is_named_by_its_key(tmp_path):
    assert measuring_model(None, NANO) == NANO
    pinned = ModelConfig(path="org/name", revision="abc", dtype="float32")
    assert measuring_model(None, pinned).revision == "abc"
    other = measuring_model("nano", pinned)
    assert (other.path, other.revision, other.dtype) == ("nano", None, "float32")
    with pytest.raises(InputError, match=r"^model.path nano-untrained: has no weights"):
        measuring_model(None, ModelConfig(path="nano-untrained"))
    with pytest.raises(InputError, match=r"^select.perplexity.model /nowhere: no such folder"):
        measuring_model("/nowhere", NANO)


def configured(**select) -> Config:
    select = SelectConfig(**{"method": "perplexity", **select})
    return Config(select=select, augment=AugmentConfig(policy="nano"))


def test_only_its_own_method_asks_for_the_pass():
    assert "perplexity" not in stages_of("augment", Config())
    assert tuple(stages_of("augment", configured()))[-2:] == ("perplexity", "select")


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs a verb with stages that do nothing; which of them worked."""

    def run(config: Config) -> list[str]:
        worked: list[str] = []

        def record(stage, config, inputs, out) -> Outcome:
            worked.append(stage.name)
            return Outcome(rows_in=1, rows_out=1)

        monkeypatch.setattr(Stage, "call", record)
        pipeline.run_verb("augment", config, RunDir(tmp_path / "run"), pipeline.Options())
        return worked

    monkeypatch.setattr(ray_cluster, "start_ray", lambda config: None)
    monkeypatch.setattr(pipeline, "write_report", lambda run, config: None)
    return run


def test_the_pass_comes_before_select_and_is_not_repeated_for_another_budget(ran):
    assert ran(configured())[-3:] == ["rate_distilled", "perplexity", "select"]
    assert ran(configured()) == []
    assert ran(configured(budget=7)) == ["select"]
    assert ran(configured(budget=7, perplexity={"take": "low", "num_actors": 4})) == ["select"]
    assert ran(configured(perplexity={"max_length": 512})) == ["perplexity", "select"]


def test_new_weights_are_measured_anew(ran, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    config = configured(perplexity={"model": str(folder)})
    assert "perplexity" in ran(config)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert ran(config) == ["perplexity", "select"]


def test_another_method_makes_no_pass(ran, tmp_path):
    assert "perplexity" not in ran(Config(augment=AugmentConfig(policy="nano")))
    assert not (tmp_path / "run" / "perplexity").exists()


def test_a_model_without_weights_is_refused_before_anything_starts(ran, tmp_path):
    config = configured().model_copy(update={"model": ModelConfig(path="nano-untrained")})
    with pytest.raises(InputError, match=r"set select\.perplexity\.model"):
        ran(config)
    assert not (tmp_path / "run" / "ingest").exists()


def test_the_manifest_adds_up(tokenizer, tmp_path):
    from lm_mixup.distributed.map_parts import receipt_of

    out = RunDir(tmp_path).stage("perplexity")
    result = measure(table(("a", "b"), ("a", " ".join(["word"] * 99)), ("c", "")), tokenizer, Engine(), 60)
    out.write_part(0, result.rows, result.rejected, receipt_of(0, result))
    manifest = summarise(out, "digest", {}, 0.0, Outcome())
    assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected == 3
    assert manifest.rejected_by_reason == {"empty": 1, "too_long": 1}
