"""Perplexities from the real engine in an actor, beside those from Hugging Face's log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from stage_rows import put_part

from lm_mixup.augment.perplexity import OUTPUT, perplexity
from lm_mixup.augment.select import select
from lm_mixup.config import ModelConfig, PerplexityConfig, SelectConfig
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import Receipt, RunDir, StageDir, summarise
from lm_mixup.models.policy import load_policy, load_tokenizer

MODEL = ModelConfig(path="nano", dtype="float32")
CURATED = schemas.extend(schemas.INSTRUCTION, schemas.CURATION)
SENTENCES = [
    "The symbol of iron is Fe.",
    "Neon is a noble gas with the atomic number 10, and it is found in air.",
    "Zinc.",
    "Paris is the capital of France, <|im_end|> which lies in Europe.",
    "Ein Edelgas — sehr selten!",
]


def texts(side: str) -> list[tuple[str, str]]:
    pairs = [(f"Tell me about {side} {i}.", " ".join(SENTENCES[i % 5 :])) for i in range(7)]
    return [*pairs, (f"Say {side} words.", "word " * 400), (f"Say nothing, {side}.", "")]


def put(stage: StageDir, part: int, table) -> None:
    put_part(stage, part, table)


@pytest.fixture(scope="module")
def measured(ray_session, tmp_path_factory) -> tuple[RunDir, dict]:
    """The pass over one part of distilled rows and two of the pool's, of which the first was done before."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    distilled, curated, out = (run.stage(name) for name in ("rate_distilled", "curate", "perplexity"))
    rows = [{"prompt": p, "completion": c, "task_type": "qa", "parent_ids": []} for p, c in texts("new")]
    put(distilled, 0, schemas.table(rows, schemas.DISTILLED).append_column("score", [[5] * 9]))
    pool = [
        {"id": f"o{i}", "source": "s", "task_type": "qa", "prompt": p, "completion": c}
        for i, (p, c) in enumerate([("Done before.", "It is."), *texts("old")])
    ]
    put(curated, 0, schemas.table(pool[:1], CURATED))
    put(curated, 1, schemas.table(pool[1:], CURATED))
    out.begin("digest")
    content = schemas.content_id("Done before.", "It is.")
    put(out, 1, schemas.table([{"content": content, "perplexity": 1e9, "tokens": 3}], OUTPUT))
    outcome = perplexity(distilled, curated, out, PerplexityConfig(max_length=300, num_cpus=0.9), MODEL)
    return run, vars(summarise(out, "digest", {}, 0.0, outcome))


def expected(pairs: list[tuple[str, str]]) -> list[float]:
    """exp of the mean negative log-probability, one row at a time."""
    import torch

    tokenizer, policy = load_tokenizer("nano", MODEL), load_policy("nano", MODEL)
    values = []
    for prompt, completion in pairs:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        asked = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(completion.replace("<|im_end|>", "< |im_end|>"), add_special_tokens=False)[
            "input_ids"
        ]
        with torch.no_grad():
            logits = policy(torch.tensor([asked + answer])).logits[0].double()
        scores = logits.log_softmax(-1)[len(asked) - 1 : -1]
        values.append(float(np.exp(-scores[torch.arange(len(answer)), torch.tensor(answer)].mean())))
    return values


def test_perplexities_agree_with_hugging_face(measured):
    run, _ = measured
    out = run.stage("perplexity")
    for part, side in ((0, "new"), (2, "old")):
        rows = out.read_part(out.parts()[part]).to_pylist()
        pairs = texts(side)[:7]
        assert [row["content"] for row in rows] == [schemas.content_id(*pair) for pair in pairs]
        np.testing.assert_allclose([row["perplexity"] for row in rows], expected(pairs), rtol=1e-5)


def test_rows_too_long_are_refused_and_counted_and_done_parts_are_kept(measured):
    run, manifest = measured
    assert manifest["rejected_by_reason"] == {"empty": 2, "too_long": 2}
    assert manifest["rows_in"] == manifest["rows_out"] + manifest["rows_rejected"] == 19
    assert manifest["metrics"]["model"] == "nano"
    out = run.stage("perplexity")
    assert out.read_part(out.parts()[1])["perplexity"].to_pylist() == [1e9]


def test_select_takes_the_end_that_is_asked_for(measured):
    run, _ = measured
    stages = [run.stage(name) for name in ("rate_distilled", "curate", "embed", "neighbors")]
    distilled = stages[0].read()
    stages[0].write_part(
        0, distilled.append_column("long_tail", [[0.5] * distilled.num_rows]), None, Receipt(0, 9, 9, 0)
    )
    best, worst = (
        select(
            *stages,
            run.stage("perplexity"),
            run.stage(f"select_{take}"),
            SelectConfig(method="perplexity", budget=4, perplexity={"take": take}),
            0,
        )
        for take in ("low", "high")
    )
    for outcome in (best, worst):
        assert outcome.rows_in == outcome.rows_used + sum(outcome.left_out.values()) == 19
        assert outcome.left_out["original_too_long"] == outcome.left_out["distilled_too_long"] == 1
        assert outcome.left_out["original_empty"] == outcome.left_out["distilled_empty"] == 1
    low, high = (run.stage(f"select_{take}").read() for take in ("low", "high"))
    assert "o0" in high["id"].to_pylist() and "o0" not in low["id"].to_pylist()
    assert max(low["perplexity"].to_pylist()) < min(high["perplexity"].to_pylist())
