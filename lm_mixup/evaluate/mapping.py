"""Stage `mapping`: how well distillers turn the poor inputs of held-out MIXTURE rows into a good one.

The method trains a mapping; this measures it where there is a reference (paper section 4). Each model distils
the same test rows, greedily. What comes out is parsed, measured against its inputs, compared with the
reference and rated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_mixup.augment.rate import rate_table
from lm_mixup.chat.judge import SharedJudge, share_judge
from lm_mixup.config import MappingConfig, ModelConfig, RateConfig
from lm_mixup.core import schemas
from lm_mixup.core.draws import hash_of
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.task_types import FormatError, parse_answer, parse_output, read_input, to_pair
from lm_mixup.core.words import words
from lm_mixup.demo import has_entities, recall
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.models.resolve import UNTRAINED_NANO, check_model_path, portable_path
from lm_mixup.rewards.faithfulness import Source, measure

Row = dict[str, Any]

DRAWN = pa.schema(
    [
        ("model", pa.string()),
        ("id", pa.string()),
        ("task_type", pa.string()),
        ("inputs", pa.list_(pa.string())),
        ("reference", pa.string()),
        ("raw", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("reason", pa.string()),
        ("faithfulness", pa.float32()),
        ("coverage", pa.float32()),
        ("rouge_l", pa.float32()),
        ("facts_wanted", pa.int32()),
        ("facts_found", pa.int32()),
    ]
)
MEASURES = ("in_format", "faithfulness", "coverage", "rouge_l", "good", "facts_recall")
_ROWS_PER_UNIT = 256
_GOOD = 4  # `select.min_score` of the paper


@dataclass(frozen=True)
class Unit:
    """Some test rows for one model."""

    label: str
    path: str
    first: int
    last: int


def mapping_trained(
    mixture: StageDir,
    sft: StageDir,
    grpo: StageDir,
    out: StageDir,
    config: MappingConfig,
    model: ModelConfig,
    rate: RateConfig,
    seed: int,
) -> Outcome:
    """Compares the model that training began with, what `sft` made of it, and what `grpo` did."""
    base = [] if model.path == UNTRAINED_NANO else [("base", model.path)]
    trained = [("sft", sft.location("model")), ("grpo", grpo.location("model"))]
    return _compare([*base, *trained], mixture, out, config, model, rate, seed)


def mapping(
    mixture: StageDir, out: StageDir, config: MappingConfig, model: ModelConfig, rate: RateConfig, seed: int
) -> Outcome:
    """Compares the models of `mapping.models` on test rows of MIXTURE.

    Input columns: `schemas.MIXTURE`. Output columns: `DRAWN` and `schemas.RATING`, a row for each model and
    test row. `reason` says why an output is not in format, or could not be asked for; such a row has
    no prompt and is not rated. Beside the parts: `results.json`, `table.md`, with a line for each model, all
    rows and each task type.

    Args:
        out: The stage directory.
        config: The `mapping` section.
        model: Data type and trust of what is loaded.
        rate: The judge.
        seed: Of the sample of test rows.

    Raises:
        InputError: There is no such model, or no test row.
    """
    for path in config.models:
        check_model_path(path, "mapping.models")
    return _compare([(path, path) for path in config.models], mixture, out, config, model, rate, seed)


def _compare(
    models: Sequence[tuple[str, str]],
    mixture: StageDir,
    out: StageDir,
    config: MappingConfig,
    model: ModelConfig,
    rate: RateConfig,
    seed: int,
) -> Outcome:
    from lm_mixup.distributed.ray_cluster import has_gpu
    from lm_mixup.models.engine import engine_environment

    rows = held_out_rows(mixture, config.rows, seed)
    starts = range(0, len(rows), _ROWS_PER_UNIT)
    drawn = StageDir(out.run, f"{out.name}/drawn")
    units: list[Unit] = []
    for label, path in models:
        units += [Unit(label, portable_path(path), s, min(s + _ROWS_PER_UNIT, len(rows))) for s in starts]
        # One model at a time, in actors of its own: an engine does not give its memory back.
        map_parts(
            drawn,
            units,
            make_drawing,
            {"rows": rows, "config": config, "model": model},
            num_actors=config.num_actors,
            num_cpus=config.num_cpus,
            num_gpus=config.tensor_parallel_size if has_gpu() else 0.0,
            label=f"distil with {label}",
            runtime_env={"env_vars": engine_environment(max(1, int(config.num_cpus)))},
        )
    shared = share_judge(rate, out)
    map_parts(
        out,
        drawn.parts(),
        make_rating,
        {"drawn": drawn, "shared": shared},
        **shared.placement(),
        label="rate",
    )
    results = summarise_by_model(out.read().to_pylist())
    out.run.write_json(f"{out.name}/results.json", results)
    page = markdown(results)
    out.run.write_bytes(f"{out.name}/table.md", page.encode())
    for line in page.splitlines():
        say(line)
    files = [*out.parts(), f"{out.name}/results.json", f"{out.name}/table.md"]
    return Outcome(metrics=shared.metrics() | {"test_rows": len(rows)}, files=files)


def held_out_rows(mixture: StageDir, most: int, seed: int) -> list[Row]:
    """At most so many rows of the test split, those of least hash, by id.

    Raises:
        InputError: There are none.
    """
    kept: list[Row] = []
    for table in mixture.iter_parts():
        kept += table.filter(pc.equal(table["split"], "test")).to_pylist()
        kept = sorted(kept, key=lambda row: (hash_of(seed, row["id"]), row["id"]))[:most]
    if not kept:
        raise InputError(f"{mixture.run.uri}/mixture: no row of the test split; raise build.test_fraction")
    return sorted(kept, key=lambda row: str(row["id"]))


def make_drawing(
    rows: Sequence[Row], config: MappingConfig, model: ModelConfig
) -> Callable[[Unit], PartResult]:
    """The function that has one model distil some rows; the model is loaded by the first."""
    from lm_mixup.models.engine import Engine, Sampling
    from lm_mixup.models.policy import encode_prompt, load_tokenizer

    loaded: dict[str, Any] = {}
    room = config.max_prompt_length
    sampling = Sampling(
        temperature=0.0,
        max_tokens=config.max_completion_length,
        repetition_penalty=config.repetition_penalty,
    )

    def work(unit: Unit) -> PartResult:
        if unit.path not in loaded:
            engine = Engine.from_config(
                unit.path,
                model,
                max_model_len=room + config.max_completion_length,
                tensor_parallel_size=config.tensor_parallel_size,
            )
            loaded[unit.path] = (engine, load_tokenizer(unit.path, model, "mapping.models"))
        engine, tokenizer = loaded[unit.path]
        asked = rows[unit.first : unit.last]
        prompts = [encode_prompt(tokenizer, row["instruction"], row["inputs"]) for row in asked]
        fits = [number for number, prompt in enumerate(prompts) if len(prompt) <= room]
        outputs = engine.generate([prompts[n] for n in fits], sampling, [0] * len(fits))
        texts = {n: completion for n, (completion,) in zip(fits, outputs, strict=True)}
        found = [
            measured(unit.label, row, texts[n].text, finished=texts[n].finished)
            if n in texts
            else measured(unit.label, row, "", finished=False, reason="prompt_too_long")
            for n, row in enumerate(asked)
        ]
        return PartResult(schemas.table(found, DRAWN), rows_in=len(found))

    return work


def measured(label: str, row: Row, raw: str, *, finished: bool, reason: str = "") -> Row:
    """One output against its inputs and its reference.

    Args:
        label: What the table calls the model.
        row: A row of `schemas.MIXTURE`.
        raw: What the model wrote.
        finished: Whether it ended by itself.
        reason: Why it was not asked; then `raw` is empty.
    """
    task_type = row["task_type"]
    found: Row = {
        "model": label,
        "id": row["id"],
        "task_type": task_type,
        "inputs": row["inputs"],
        "reference": row["output"],
        "raw": raw,
    }
    named = [str(row[key]) for key in ("entity", "partner_entity") if row.get(key)]
    if named and has_entities(named):
        facts = recall(task_type, raw, row["output"], named)
        found |= {"facts_wanted": facts.wanted, "facts_found": facts.found}
    try:
        if reason or not finished:
            raise FormatError(reason or "cut_at_max_completion_length")
        sample = parse_answer(task_type, parse_output(raw).answer)
    except FormatError as error:
        return found | {"reason": str(error), "faithfulness": 0.0, "coverage": 0.0, "rouge_l": 0.0}
    # A paragraph answers its first input's question.
    prompt, completion = to_pair(sample, read_input(row["inputs"][0])[0])
    sources = [Source(*read_input(text)) for text in row["inputs"]]
    against = measure(prompt, completion, sources, task_type)
    return found | {
        "prompt": prompt,
        "completion": completion,
        "faithfulness": against.fidelity,
        "coverage": against.coverage,
        "rouge_l": rouge_l(parse_output(raw).answer, row["output"]),
    }


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), by the tokens of `core.words`: any script."""
    from rouge_score.rouge_scorer import RougeScorer

    scored = RougeScorer(["rougeL"], tokenizer=_Words()).score(reference, text)
    return float(scored["rougeL"].fmeasure)


class _Words:
    """The project's tokens, as `rouge_score` takes a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def make_rating(drawn: StageDir, shared: SharedJudge) -> Callable[[str], PartResult]:
    """The function that rates what is in format; the other rows come out unrated."""
    judge = shared.make()

    def work(part: str) -> PartResult:
        rows = drawn.read_part(part)
        written = pc.is_null(rows["reason"])
        rated = rate_table(rows.filter(written), judge, rows.filter(written)["inputs"].to_pylist())
        others = rows.filter(pc.invert(written))
        joined = pa.concat_tables([rated.rows, others], promote_options="default").sort_by("id")
        return PartResult(joined, rows_in=rows.num_rows, metrics=rated.metrics)

    return work


def summarise_by_model(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """`MEASURES` of each model over all rows and over each task type, as means over its test rows.

    What is not in format counts as 0 in all of them. `good` is the share rated 4 or 5. `facts_recall` is of
    the references' facts in the closed world, None elsewhere.
    """
    models = dict.fromkeys(row["model"] for row in rows)
    results = []
    for model in models:
        mine = [row for row in rows if row["model"] == model]
        groups = {"all": mine} | {
            name: [row for row in mine if row["task_type"] == name]
            for name in sorted({row["task_type"] for row in mine})
        }
        results += [{"model": model, "rows": name, **figures(group)} for name, group in groups.items()]
    return results


def figures(rows: Sequence[Mapping[str, Any]]) -> Row:
    """`count` and `MEASURES` of some rows."""
    wanted = sum(row["facts_wanted"] or 0 for row in rows)
    found = sum(row["facts_found"] or 0 for row in rows)
    return {
        "count": len(rows),
        "in_format": float(np.mean([row["reason"] is None for row in rows])),
        **{
            name: float(np.mean([row[name] or 0.0 for row in rows]))
            for name in ("faithfulness", "coverage", "rouge_l")
        },
        "good": float(np.mean([(row["score"] or 0) >= _GOOD for row in rows])),
        "facts_recall": found / wanted if wanted else None,
    }


def markdown(results: Sequence[Row]) -> str:
    """A table of all figures."""
    lines = [f"| model | rows | count | {' | '.join(MEASURES)} |", "|---" * (3 + len(MEASURES)) + "|"]
    for row in results:
        cells = ["" if row[name] is None else f"{row[name]:.3f}" for name in MEASURES]
        lines.append(f"| {row['model']} | {row['rows']} | {row['count']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
