"""Writes a plausible run directory through the real `runs` API, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pyarrow as pa
from page_checks import MARKUP

from lm_mixup.core.run_dir import Outcome, RunDir, StageDir, summarise
from lm_mixup.core.schemas import (
    CLUSTER,
    CURATION,
    DISTILLED,
    FAITHFULNESS,
    INSTRUCTION,
    MIXTURE,
    RATING,
    extend,
    table,
)
from lm_mixup.core.value_counts import count_values
from lm_mixup.distributed.map_parts import PartResult, receipt_of

EVIL = "<script>alert('row')</script>"
FACTS = [
    ("iron", "Fe", "26"),
    ("gold", "Au", "79"),
    ("neon", "Ne", "10"),
    ("zinc", "Zn", "30"),
    ("tin", "Sn", "50"),
]
REASONS = ("empty_completion", "not_json", "missing_tag:</answer>")


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    pool: int = 600,
    train: bool = True,
    evil: bool = False,
    embed: bool = False,
) -> RunDir:
    """A run with an augment half and, if asked, a build and a train half."""
    rng = random.Random(seed)
    run = RunDir(folder)
    run.write_json(
        "run.json",
        {
            "started": "2026-01-02T03:04:05Z",
            "command": ["/opt/venv/bin/lm-mixup", "run", "configs/quickstart.yaml", "--run-dir", "runs/demo"],
            "seed": seed,
            "versions": {
                "lm_mixup": "0.1.0",
                "python": "3.11.7",
                "torch": "2.13.0",
                "ray": "2.60.0",
                "vllm": "0.32.0",
            },
            "config": {"seed": seed, "model": {"path": "nano"}, "rate": {"backend": "offline"}},
        },
    )
    if train:
        _train(run, rng, evil)
    rows = [_pool_row(i, rng, evil) for i in range(pool)]
    if embed:
        _embed(run, rows, random.Random(seed))
    _augment(run, rows, rng)
    return run


def _pool_row(index: int, rng: random.Random, evil: bool) -> dict:
    name, symbol, number = FACTS[index % len(FACTS)]
    completion = rng.choice(
        [f"{symbol}.", f"it is {symbol} I think", f"{name} has {number}", "not sure, maybe a metal"]
    )
    return {
        "id": f"row{index:05d}",
        "source": MARKUP[index % len(MARKUP)] if evil and index % 2 else ("demo", "forum", "wiki")[index % 3],
        "task_type": ("qa", "mcq", "tfq", "cs", "para")[index % 5],
        "prompt": (EVIL, *MARKUP)[index % (1 + len(MARKUP))] if evil else f"what is the symbol for {name}?",
        "completion": EVIL if evil else completion,
    }


def _write(stage: StageDir, parts: list[PartResult], seconds: float, outcome: Outcome | None = None) -> None:
    stage.begin("f" * 24)
    for number, result in enumerate(parts):
        stage.write_part(number, result.rows, result.rejected, receipt_of(number, result))
    stage.finish(summarise(stage, "f" * 24, {}, seconds, outcome or Outcome()))


def _chunks(rows: list[dict], size: int = 100) -> list[list[dict]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _rejected(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(
        rows, pa.schema([("id", pa.string()), ("raw", pa.string()), ("reason", pa.string())])
    )


def _augment(run: RunDir, rows: list[dict], rng: random.Random) -> None:
    refused = [
        {"id": None, "raw": '{"prompt": "no end' if i % 2 else EVIL, "reason": REASONS[i % 2]}
        for i in range(len(rows) // 50)
    ]
    ingest = [PartResult(table(part, INSTRUCTION), None, len(part)) for part in _chunks(rows)]
    ingest[0] = PartResult(ingest[0].rows, _rejected(refused), ingest[0].rows_in + len(refused))
    _write(run.stage("ingest"), ingest, 2.1)
    rated = [row | _rating(rng.choice([4, 4, 5, 5, 6, 7, 8, 9])) for row in rows]
    schema = extend(INSTRUCTION, RATING)
    _write(run.stage("rate"), [PartResult(table(p, schema), None, len(p)) for p in _chunks(rated)], 14.0)
    curated = [
        r | {"curated_score": min(5, r["score"] + (rng.random() < 0.1)), "confidence": 0.8} for r in rated
    ]
    schema = extend(INSTRUCTION, RATING, CURATION)
    judge = [[0.75 if s == t else 0.05 for s in range(6)] for t in range(6)]
    metrics = {"corrected": 61, "kept": 539, "transition": judge, "prior": [1 / 6] * 6}
    parts = [PartResult(table(p, schema), None, len(p)) for p in _chunks(curated)]
    _write(run.stage("curate"), parts, 5.5, Outcome(metrics=metrics))
    _distil(run, curated, rng)


def _embed(run: RunDir, rows: list[dict], rng: random.Random) -> None:
    """Vectors in five groups, one for each fact."""
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float16(), 8))])
    vectors = [
        {"id": row["id"], "embedding": [float(axis == n % 5) + rng.gauss(0, 0.1) for axis in range(8)]}
        for n, row in enumerate(rows)
    ]
    parts = [PartResult(pa.Table.from_pylist(part, schema), None, len(part)) for part in _chunks(vectors)]
    _write(run.stage("embed"), parts, 3.0)


def _rating(overall: int) -> dict:
    return {
        "rarity": overall - 1,
        "complexity": overall,
        "informativeness": overall,
        "overall": overall,
        "score": min(9, max(4, overall)) - 4,
        "rater": "offline",
        "error": None,
    }


def _distil(run: RunDir, curated: list[dict], rng: random.Random) -> None:
    low = [row["id"] for row in curated if row["curated_score"] < 4]
    clusters, start = [], 0
    while start < len(low):
        members = low[start : start + rng.randint(2, 5)]
        start += len(members)
        if len(members) >= 2:
            cohesion = min(0.99, rng.gauss(0.72, 0.08))
            clusters.append(
                {
                    "cluster_id": f"c{len(clusters):04d}",
                    "member_ids": members,
                    "size": len(members),
                    "cohesion": cohesion,
                }
            )
    used = sum(c["size"] for c in clusters)
    outcome = Outcome(
        rows_in=len(curated),
        rows_used=used,
        left_out={"high_score": len(curated) - len(low), "no_kin": len(low) - used},
    )
    _write(run.stage("cluster"), [PartResult(table(clusters, CLUSTER))], 6.2, outcome)
    rows = [_distilled(cluster, number) for number, cluster in enumerate(clusters)]
    good, bad = rows[len(rows) // 20 :], rows[: len(rows) // 20]
    failed = pa.Table.from_pylist(
        [
            {
                "cluster_id": r["cluster_id"],
                "task_type": r["task_type"],
                "member_ids": r["parent_ids"],
                "reason": REASONS[2],
                "raw": r["raw"][:60],
            }
            for r in bad
        ]
    )
    _write(run.stage("distill"), [PartResult(table(good, DISTILLED), failed, len(rows))], 48.0)
    rated = [
        r
        | _rating(rng.choice([7, 8, 9, 9, 9]))
        | {"id": r["cluster_id"], "long_tail": rng.random(), "faithfulness": 1.0, "coverage": 0.9}
        for r in good
    ]
    own = pa.schema([("id", pa.string()), ("long_tail", pa.float32())])
    schema = extend(DISTILLED, RATING, FAITHFULNESS, own)
    _write(run.stage("rate_distilled"), [PartResult(*_gate(rated, schema), len(rated))], 4.0)
    rated = rated[len(rated) // 10 :]
    chosen = [{"id": r["cluster_id"], "origin": "distilled"} for r in rated[:9]]
    chosen += [{"id": r["id"], "origin": "original"} for r in curated[:9]]
    rows_in = len(rated) + len(curated)
    outcome = Outcome(rows_in=rows_in, rows_used=18, left_out={"over_budget": rows_in - 18})
    _write(run.stage("select"), [PartResult(pa.Table.from_pylist(chosen))], 1.2, outcome)


def _gate(rated: list[dict], schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """A tenth of the rows says something that no parent bears out, and is rejected."""
    count = len(rated) // 10
    invented = {"faithfulness": 0.5, "unsupported": ["atomic number"], "unsupported_kinds": ["term"]}
    refused = table([row | invented for row in rated[:count]], schema)
    reason = pa.array(["faithfulness_below_0.9"] * count)
    return table(rated[count:], schema), refused.append_column("reason", reason)


def _distilled(cluster: dict, number: int) -> dict:
    name, symbol, atomic = FACTS[number % len(FACTS)]
    completion = f"The symbol of {name} is {symbol}; its atomic number is {atomic}."
    return {
        "cluster_id": cluster["cluster_id"],
        "task_type": ("qa", "mcq", "tfq", "cs", "para")[number % 5],
        "prompt": f"What is the chemical symbol of {name}, and what is its atomic number?",
        "completion": completion,
        "cot": f"The inputs speak of {name}. One gives its symbol, another its number.",
        "raw": f"<think>…</think>\n<answer>Q: …\nA: {completion}</answer>",
        "parent_ids": cluster["member_ids"],
    }


def _train(run: RunDir, rng: random.Random, evil: bool) -> None:
    counts = {
        "passages": (0, 420, 1.4),
        "generate": (420, 3000, 8.2),
        "degrade": (3000, 10400, 11.9),
    }
    for name, (rows_in, rows_out, seconds) in counts.items():
        _write(run.stage(name), [], seconds, Outcome(rows_in=rows_in, rows_out=rows_out, rows_used=rows_in))
    parts = [table(rows, MIXTURE) for rows in _chunks([_mixture_row(n, rng, evil) for n in range(240)])]
    results = [PartResult(part, metrics=count_values(part) | {"inputs": 700}) for part in parts]
    _write(run.stage("mixture"), results, 6.0, Outcome(rows_in=10400, rows_used=10400))
    _write(
        run.stage("sft"),
        [],
        212.0,
        Outcome(rows_in=2100, rows_out=2100, metrics={"eval_loss": 0.41, "steps": 300}),
    )
    _write(run.stage("library"), [], 9.0, Outcome(rows_in=3000, rows_out=2000, rows_used=2000))
    _write(
        run.stage("grpo"),
        [],
        388.0,
        Outcome(rows_in=600, rows_out=600, metrics={"reward_first": 0.42, "reward_last": 0.71}),
    )
    run.write_bytes(
        "sft/metrics.jsonl", _lines([_sft_step(s, rng) for s in range(5, 301, 5)] + _evaluations())
    )
    steps = [_grpo_step(step, rng) for step in range(1, 61)]
    run.write_bytes("grpo/metrics.jsonl", _lines(steps))
    run.write_bytes("grpo/completions.jsonl", _lines([_written(step, evil) for step in (0, 20, 40, 60)]))
    held_out = [step | {"format/compliance": 0.9} for step in steps if step["step"] % 20 == 0]
    run.write_bytes("grpo/validation.jsonl", _lines(held_out))


def _mixture_row(index: int, rng: random.Random, evil: bool) -> dict:
    name, symbol, number = FACTS[index % len(FACTS)]
    texts = [f"{name} is {symbol}", f"its number is {number}", f"a metal, {symbol}"][: rng.randint(2, 3)]
    return {
        "id": f"m{index:05d}",
        "task_type": ("qa", "mcq", "tfq", "cs", "para")[index % 5],
        "instruction": EVIL if evil else "Merge the texts.",
        "inputs": [EVIL] * 2 if evil else texts,
        "cot": EVIL if evil else rng.choice(["", "Both speak of one element."]),
        "output": EVIL if evil else f"{name.title()} has the symbol {symbol} and the number {number}.",
        "score": rng.choice([4, 5]),
        "method": rng.choice(["degrade", "degrade", "crosstopic"]),
        "noisy": rng.random() < 0.2,
        "source_ids": [],
        "split": ("sft", "sft", "sft", "grpo", "test")[index % 5],
    }


def _written(step: int, evil: bool) -> dict:
    """What the policy wrote for a held-out prompt at a step."""
    text = EVIL if evil else f"Iron has the symbol Fe, written at step {step}."
    sample = {"id": "m00004", "task_type": "para", "inputs": ["iron is Fe"], "reference": "Iron is Fe."}
    return {"step": step, "samples": [sample | {"completion": text, "reward": 0.4 + step / 200}]}


def _lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _sft_step(step: int, rng: random.Random) -> dict:
    loss = 0.35 + 2.4 * math.exp(-step / 60) + rng.gauss(0, 0.03)
    return {
        "step": step,
        "loss": loss,
        "lr": 2e-4,
        "grad_norm": 0.6 + 2 * math.exp(-step / 50) + rng.random() * 0.2,
    }


def _evaluations() -> list[dict]:
    return [{"step": step, "eval_loss": 0.40 + 2.3 * math.exp(-step / 60)} for step in range(50, 301, 50)]


def _grpo_step(step: int, rng: random.Random) -> dict:
    rise = 1 - math.exp(-step / 20)
    parts = {"quality": 0.35 + 0.3 * rise, "alignment": 0.3 + 0.4 * rise, "format": 0.7 + 0.28 * rise}
    parts = {f"rewards/{name}/mean": value + rng.gauss(0, 0.03) for name, value in parts.items()}
    timing = {"rollout": 3.2, "reward": 0.9, "advantage": 0.01, "update": 2.1, "sync": 0.12}
    timing = {f"timing_s/{name}": value * rng.uniform(0.8, 1.2) for name, value in timing.items()}
    return {
        "step": step,
        "reward": 0.42 + 0.3 * rise + rng.gauss(0, 0.03),
        "reward_std": 0.1,
        **parts,
        **timing,
        "timing_s/step": sum(timing.values()),
        "completions/mean_length": 60 + 20 * rise + rng.gauss(0, 2),
        "completions/clipped_ratio": max(0.0, 0.12 - 0.1 * rise + rng.gauss(0, 0.01)),
        "kl": 0.002 * step / 60 + abs(rng.gauss(0, 2e-4)),
        "entropy": 0.9 - 0.3 * rise + rng.gauss(0, 0.02),
        "sampling/logp_difference/mean": abs(rng.gauss(0, 2e-7)),
        "sampling/logp_difference/max": abs(rng.gauss(0, 2e-6)),
        "frac_reward_zero_std": max(0.0, 0.2 + rng.gauss(0, 0.05)),
        "loss": rng.gauss(0, 0.01),
        "grad_norm": 0.4 + 0.1 * rng.random(),
    }
