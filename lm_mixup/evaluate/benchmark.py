"""Stage `benchmark`: models on tasks of lm-eval, one task of one model a unit of work.

A finished unit is never run again, so a killed run goes on with the next one. Figures are lm-eval's own: the
same model on the same task, called directly, gives the same digits.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lm_mixup.config import BenchmarkConfig, ModelConfig
from lm_mixup.core import schemas
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.evaluate.harness import Harness

RESULT = pa.schema(
    [
        ("model", pa.string()),
        ("benchmark", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("questions", pa.int64()),
        ("num_fewshot", pa.int64()),
        ("version", pa.string()),
    ]
)
Unit = tuple[str, str]  # a model and a name of `benchmark.tasks`


def benchmark_finetuned(
    finetune: StageDir,
    out: StageDir,
    config: BenchmarkConfig,
    model: ModelConfig,
    own_model: ModelConfig | None,
    seed: int,
) -> Outcome:
    """Measures the model that `finetune` made and the one it started from, as `benchmark` does."""
    base = (own_model or model).path
    chosen = config.model_copy(update={"model": [finetune.location("model"), base]})
    return benchmark(out, chosen, model, seed)


def benchmark(out: StageDir, config: BenchmarkConfig, model: ModelConfig, seed: int) -> Outcome:
    """Measures models on tasks.

    Part i holds the results of one task of one model (`RESULT`), a row for each metric of the task, of its
    sub-tasks and groups. Beside the parts: `results.json`, `table.csv` and `table.md` with one column per
    model, and `samples/`: one JSONL file per task and model with every question, what the model was asked,
    what it answered and how that was scored.

    Args:
        out: The stage directory.
        config: The `benchmark` section, its `model` set.
        model: Data type, revision and trust of what is loaded.
        seed: Of lm-eval's draws of examples.

    Raises:
        InputError: A task, a file or a model is not there.
    """
    from lm_mixup.distributed.ray_cluster import has_gpu
    from lm_mixup.models.engine import engine_environment

    models = models_of(config)
    units: list[Unit] = [(path, task) for path in models for task in config.tasks]
    map_parts(
        out,
        units,
        make_work,
        {"out": out, "config": config, "model": model, "seed": seed},
        num_actors=config.num_actors,
        num_cpus=config.num_cpus,
        num_gpus=config.tensor_parallel_size if has_gpu() else 0.0,
        runtime_env={"env_vars": engine_environment(max(1, int(config.num_cpus)))},
    )
    results = out.read().to_pylist()
    labels = dict(zip(models, labels_of(models), strict=True))
    header, lines = table_of(results, config.tasks, labels)
    out.run.write_json(f"{out.name}/results.json", {"models": labels, "results": results})
    out.run.write_bytes(f"{out.name}/table.csv", _csv(header, lines).encode())
    text = markdown(header, lines)
    out.run.write_bytes(f"{out.name}/table.md", text.encode())
    for line in text.splitlines():
        say(line)
    files = [f"{out.name}/{name}" for name in ("results.json", "table.csv", "table.md")]
    return Outcome(rows_in=len(units), rows_out=len(results), files=files)


def models_of(config: BenchmarkConfig) -> list[str]:
    """The models to measure, each once."""
    named = [config.model] if isinstance(config.model, str) else list(config.model or [])
    return list(dict.fromkeys(named))


def labels_of(models: Sequence[str]) -> list[str]:
    """A short name for each model: the last part of its path, or as much of it as tells them apart."""
    parts = [Path(path).parts for path in models]
    for count in range(1, max((len(mine) for mine in parts), default=1) + 1):
        labels = ["/".join(mine[-count:]) for mine in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(models)


def make_work(
    out: StageDir, config: BenchmarkConfig, model: ModelConfig, seed: int
) -> Callable[[Unit], PartResult]:
    """The function that measures one model on one task; a model stays loaded for its next task."""
    harness = Harness(config, model, seed)

    def work(unit: Unit) -> PartResult:
        path, task = unit
        results, samples = harness.run(path, task)
        lines = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in samples)
        out.run.write_bytes(f"{out.name}/samples/{_file_name(path, task)}.jsonl", lines.encode())
        return PartResult(schemas.table(results, RESULT), rows_in=1, metrics={"questions": len(samples)})

    return work


def _file_name(path: str, task: str) -> str:
    """A name that is safe for a file; the digest tells models apart that are called alike."""
    safe = re.sub(r"[^\w.-]+", "-", f"{Path(path).name}-{Path(task).stem}")
    return f"{safe}-{schemas.content_id(path, task)[:8]}"


def table_of(
    results: Sequence[dict[str, Any]], benchmarks: Sequence[str], labels: dict[str, str]
) -> tuple[list[str], list[list[str]]]:
    """A line for each benchmark and metric, a column for each model: value ± standard error.

    Of a group the line is that of the group; of a tag, which has no figure of its own, those of its tasks.
    """
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    heads = {row["task"] for row in results if row["task"] == row["benchmark"]}
    order = {name: place for place, name in enumerate(benchmarks)}
    for row in sorted(results, key=lambda row: order[row["benchmark"]]):
        if row["benchmark"] in heads and row["task"] != row["benchmark"]:
            continue
        error = "" if row["stderr"] is None else f" ± {row['stderr']:.4f}"
        key = (row["task"], row["metric"], str(row["questions"]))
        cells.setdefault(key, {})[row["model"]] = f"{row['value']:.4f}{error}"
    header = ["task", "metric", "questions", *labels.values()]
    return header, [[*key, *(found.get(path, "") for path in labels)] for key, found in cells.items()]


def _csv(header: list[str], lines: list[list[str]]) -> str:
    text = io.StringIO()
    rows = [[_no_formula(cell) for cell in line] for line in (header, *lines)]
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _no_formula(cell: str) -> str:
    """A cell that no spreadsheet program takes for a formula; numbers stay."""
    return f"'{cell}" if re.match(r"[=+@\t\r]|-(?!\d)", cell) else cell


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(header)
    return "".join("| " + " | ".join(line) + " |\n" for line in (header, rule, *lines))
