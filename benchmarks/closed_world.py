"""What a policy's distilled answers are worth in the closed world, by task type.

Greedy completions of a run's MIXTURE test split (entities, and wordings, that training never saw). A row:
the share of answers that follow their format, the share of the reference's facts that the answer states, and
the facts it states beside those, per answer; over several runs (seeds), mean and standard deviation.

    python benchmarks/closed_world.py RUN_DIR [RUN_DIR …] --policy nano --policy sft --policy grpo
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from lm_mixup.config import ModelConfig
from lm_mixup.core.run_dir import RunDir
from lm_mixup.demo.fact_check import Recall, recall
from lm_mixup.models.engine import Engine, Sampling, engine_environment
from lm_mixup.models.policy import encode_prompt, load_tokenizer
from lm_mixup.models.resolve import model_folder

MAX_PROMPT, MAX_COMPLETION = 640, 192


def rows_of(run: str, split: str, limit: int) -> list[dict[str, Any]]:
    """The first rows of a split, by id."""
    rows = RunDir(run).stage("mixture").read().to_pylist()
    return sorted((row for row in rows if row["split"] == split), key=lambda row: row["id"])[:limit]


def complete(policy: str, rows: list[dict[str, Any]], temperature: float, seed: int) -> list[str]:
    """The policy's text for each row's prompt; nothing for a prompt that is too long."""
    folder = model_folder(policy)
    tokenizer = load_tokenizer(folder, ModelConfig())
    prompts = [encode_prompt(tokenizer, row["instruction"], row["inputs"]) for row in rows]
    fits = [index for index, prompt in enumerate(prompts) if len(prompt) <= MAX_PROMPT]
    engine = Engine(folder, dtype="float32", max_model_len=MAX_PROMPT + MAX_COMPLETION)
    sampling = Sampling(n=1, temperature=temperature, max_tokens=MAX_COMPLETION)
    drawn = engine.generate([prompts[i] for i in fits], sampling, [seed + i for i in fits])
    texts = [""] * len(rows)
    for index, (completion,) in zip(fits, drawn, strict=True):
        texts[index] = completion.text if completion.finished else ""
    return texts


def figures(rows: list[dict[str, Any]], texts: list[str]) -> dict[str, dict[str, float]]:
    """Format compliance, fact recall and other facts, by task type and over all."""
    found: dict[str, list[Recall]] = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        entities = [name for name in (row["entity"], row["partner_entity"]) if name]
        result = recall(row["task_type"], text, row["output"], entities)
        found[row["task_type"]].append(result)
        found["all"].append(result)
    return {
        task: {
            "rows": len(results),
            "format": sum(r.parsed for r in results) / len(results),
            "recall": sum(r.found for r in results) / max(1, sum(r.wanted for r in results)),
            "other": sum(r.other for r in results) / len(results),
        }
        for task, results in sorted(found.items())
    }


def policy_folder(run: str, policy: str) -> str:
    """`sft` and `grpo` are the models of the run itself."""
    return str(Path(run) / policy / "model") if policy in ("sft", "grpo") else policy


def spread(of_runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean over runs of each figure, and its standard deviation where there are several."""
    summary: dict[str, dict[str, float]] = {}
    for task in of_runs[0]:
        values = {key: [tasks[task][key] for tasks in of_runs] for key in of_runs[0][task]}
        summary[task] = {key: statistics.mean(each) for key, each in values.items()}
        if len(of_runs) > 1:
            summary[task] |= {f"{key}_sd": statistics.stdev(each) for key, each in values.items()}
    return summary


def show(policy: str, summary: dict[str, dict[str, float]]) -> None:
    """Prints a policy's table."""
    print(f"{policy}\n{'task':8}{'rows':>6}{'format':>17}{'recall':>17}{'other':>17}")
    for task, row in summary.items():
        cells = [
            f"{row[key]:.3f}" + (f" ± {row[f'{key}_sd']:.3f}" if f"{key}_sd" in row else "")
            for key in ("format", "recall", "other")
        ]
        print(f"{task:8}{row['rows']:6.0f}" + "".join(f"{cell:>17}" for cell in cells))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="+", help="run directory with a finished mixture stage")
    parser.add_argument(
        "--policy", action="append", help="model folder, `nano`, or `sft` or `grpo` of each run; repeatable"
    )
    parser.add_argument("--split", default="test", choices=("test", "grpo", "sft"))
    parser.add_argument("--limit", type=int, default=400, help="rows of each run")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="completions to print")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    results = {}
    for policy in args.policy or ["nano"]:
        of_runs = []
        for run in args.run:
            rows = rows_of(run, args.split, args.limit)
            texts = complete(policy_folder(run, policy), rows, args.temperature, args.seed)
            of_runs.append(figures(rows, texts))
            for row, text in list(zip(rows, texts, strict=True))[: args.show]:
                print("-" * 80, *row["inputs"], "=> " + row["output"], ">> " + text, sep="\n")
        results[policy] = spread(of_runs)
        show(policy, results[policy])
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for key, value in engine_environment(threads=1).items():
        os.environ.setdefault(key, value)
    main()
