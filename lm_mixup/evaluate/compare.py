"""Stage `compare`: the answers of two models to the same prompts, side by side, judged pairwise.

As AlpacaEval does (Dubois et al. 2024, arXiv 2404.04475): a chat model says which of two answers is better,
here in both orders; the win rate stands beside one at equal length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lm_mixup.augment.reading.files import list_units
from lm_mixup.augment.reading.reader import Reader
from lm_mixup.augment.reading.rows import PoolRow
from lm_mixup.chat.pairwise import Pair, Preference, prefer
from lm_mixup.chat.shared import SharedChat, placement_of, share_chat
from lm_mixup.config import CompareConfig, IngestConfig, ModelConfig, RateConfig
from lm_mixup.core import schemas
from lm_mixup.core.draws import hash_of
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.words import words
from lm_mixup.distributed.map_parts import PartResult, map_parts
from lm_mixup.evaluate.benchmark import labels_of
from lm_mixup.models.resolve import portable_path

Row = dict[str, Any]

ANSWER = pa.schema(
    [
        ("model", pa.string()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("finished", pa.bool_()),
        ("reason", pa.string()),
    ]
)
JUDGED = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("answer_a", pa.string()),
        ("answer_b", pa.string()),
        ("a_first", pa.string()),
        ("b_first", pa.string()),
        ("preference", pa.float64()),
        ("consistent", pa.bool_()),
        ("error", pa.string()),
    ]
)
_ROWS_PER_UNIT = 128
_LEVEL = 0.95
_DRAWS = 2000


@dataclass(frozen=True)
class Unit:
    """Some prompts for one model."""

    path: str
    first: int
    last: int


def compare_finetuned(
    finetune: StageDir,
    out: StageDir,
    config: CompareConfig,
    model: ModelConfig,
    own_model: ModelConfig | None,
    rate: RateConfig,
    seed: int,
) -> Outcome:
    """Compares the model that `finetune` made with the one it started from."""
    pair = [finetune.location("model"), (own_model or model).path]
    return compare(out, config.model_copy(update={"models": pair}), model, rate, seed)


def compare(out: StageDir, config: CompareConfig, model: ModelConfig, rate: RateConfig, seed: int) -> Outcome:
    """Compares the two models of `compare.models`, A and B.

    Output: a row of `JUDGED` for each prompt. One without a verdict in both orders has the reason in `error`
    and counts for neither; equal answers count half for each and are not asked about. Answers that were cut
    at the length limit are judged as they are. Beside the parts: `results.json` and `table.md`.

    Args:
        out: The stage directory.
        config: The `compare` section.
        model: Data type and trust of what is loaded.
        rate: The chat model that judges.
        seed: Of the sample of prompts, and of the interval's draws.

    Raises:
        InputError: There is no prompt or no such model, the judge lacks a setting, or it judged no pair.
    """
    from lm_mixup.distributed.ray_cluster import has_gpu
    from lm_mixup.models.engine import engine_environment

    shared = share_chat(rate, out, "rate")
    prompts, refused = read_prompts(config, seed)
    starts = range(0, len(prompts), _ROWS_PER_UNIT)
    answers = StageDir(out.run, f"{out.name}/answers")
    units: list[Unit] = []
    end = len(prompts)
    for path, label in zip(config.models, labels_of(config.models), strict=True):
        units += [Unit(portable_path(path), start, min(start + _ROWS_PER_UNIT, end)) for start in starts]
        # One model at a time, in actors of its own: an engine does not give its memory back.
        map_parts(
            answers,
            units,
            make_answering,
            {"prompts": prompts, "config": config, "model": model},
            num_actors=config.num_actors,
            num_cpus=config.num_cpus,
            num_gpus=config.tensor_parallel_size if has_gpu() else 0.0,
            label=f"answers of {label}",
            runtime_env={"env_vars": engine_environment(max(1, int(config.num_cpus)))},
        )
    parts = answers.parts()
    half = len(parts) // 2
    pairs = list(zip(parts[:half], parts[half:], strict=True))
    map_parts(
        out, pairs, make_judging, {"answers": answers, "shared": shared}, **placement_of(rate), label="judge"
    )
    rows = out.read().to_pylist()
    labels = labels_of(config.models)
    results = {"a": labels[0], "b": labels[1], **summarise(rows, seed)}
    if not results["judged"]:
        (error, count) = Counter(row["error"] for row in rows).most_common(1)[0]
        out.run.remove(f"{out.name}/receipts")
        raise InputError(
            f"{out.name}: not one of {len(rows)} pairs was judged; of {count} the reason is {error}"
        )
    out.run.write_json(f"{out.name}/results.json", results | {"models": config.models})
    page = markdown(results)
    out.run.write_bytes(f"{out.name}/table.md", page.encode())
    for line in page.splitlines():
        say(line)
    files = [*out.parts(), f"{out.name}/results.json", f"{out.name}/table.md"]
    figures = {key: results[key] for key in ("judged", "win_rate", "length_controlled", "consistent")}
    return Outcome(
        metrics=shared.metrics() | figures | {f"prompts_{reason}": n for reason, n in refused.items()},
        files=files,
    )


def read_prompts(config: CompareConfig, seed: int) -> tuple[list[Row], Counter[str]]:
    """At most `compare.rows` prompts, those of least hash, by id; and how many were refused, by reason.

    The files are read one part after another; of each part no more than the sample is kept.

    Raises:
        InputError: There are none.
    """
    reading = IngestConfig()
    reader = Reader(reading, seed)
    units, _ = list_units(str(config.prompts), int(reading.split_mib * (1 << 20)), "compare.prompts")
    kept: dict[str, Row] = {}
    refused: Counter[str] = Counter()
    for unit in units:
        for item in reader.items(unit):
            row = reader.row(item, unit)
            if isinstance(row, PoolRow):
                kept[row.id] = {"id": row.id, "prompt": row.prompt}
            else:
                refused[str(row)] += 1
        least = sorted(kept.values(), key=lambda row: (hash_of(seed, row["id"]), row["id"]))[: config.rows]
        kept = {row["id"]: row for row in least}
    if not kept:
        raise InputError(f"compare.prompts: no row with a prompt in {config.prompts} ({dict(refused)})")
    return sorted(kept.values(), key=lambda row: str(row["id"])), refused


def make_answering(
    prompts: Sequence[Row], config: CompareConfig, model: ModelConfig
) -> Callable[[Unit], PartResult]:
    """The function that has one model answer some prompts, greedily; the model is loaded by the first."""
    from lm_mixup.models.engine import Engine, Sampling
    from lm_mixup.models.policy import encode_pair, load_tokenizer

    loaded: dict[str, Any] = {}
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
                max_model_len=config.max_prompt_length + config.max_completion_length,
                tensor_parallel_size=config.tensor_parallel_size,
            )
            loaded[unit.path] = (engine, load_tokenizer(unit.path, model, "compare.models"))
        engine, tokenizer = loaded[unit.path]
        asked = prompts[unit.first : unit.last]
        encoded = [encode_pair(tokenizer, row["prompt"], "")[0] for row in asked]
        fits = [index for index, tokens in enumerate(encoded) if len(tokens) <= config.max_prompt_length]
        drawn = engine.generate([encoded[index] for index in fits], sampling, [0] * len(fits))
        written = {index: completion for index, (completion,) in zip(fits, drawn, strict=True)}
        rows = [
            row
            | {
                "model": unit.path,
                "answer": written[index].text if index in written else "",
                "finished": index in written and written[index].finished,
                "reason": None if index in written else "prompt_too_long",
            }
            for index, row in enumerate(asked)
        ]
        return PartResult(schemas.table(rows, ANSWER), rows_in=len(rows))

    return work


def make_judging(answers: StageDir, shared: SharedChat) -> Callable[[tuple[str, str]], PartResult]:
    """The function that judges the answers of A and B in two parts that hold the same prompts."""
    chat = shared.make()

    def work(parts: tuple[str, str]) -> PartResult:
        ours, theirs = (answers.read_part(part).to_pylist() for part in parts)
        rows = [
            {"id": a["id"], "prompt": a["prompt"], "answer_a": a["answer"], "answer_b": b["answer"]}
            | {"error": a["reason"] or b["reason"]}
            for a, b in zip(ours, theirs, strict=True)
        ]
        asked = [row for row in rows if row["error"] is None]
        verdicts = prefer([Pair(row["prompt"], row["answer_a"], row["answer_b"]) for row in asked], chat)
        for row, verdict in zip(asked, verdicts, strict=True):
            if isinstance(verdict, Preference):
                row |= {"a_first": verdict.a_first, "b_first": verdict.b_first}
                row |= {"preference": verdict.value, "consistent": verdict.consistent}
            else:
                row["error"] = str(verdict)
        judged = sum(row["error"] is None for row in rows)
        return PartResult(schemas.table(rows, JUDGED), rows_in=len(rows), metrics={"pairs_judged": judged})

    return work


def summarise(rows: Sequence[Mapping[str, Any]], seed: int) -> Row:
    """A's win rate over what was judged, with a 95% interval by bootstrap over the prompts.

    Returns:
        `prompts`, `judged`, `win_rate`, `low`, `high`, `length_controlled` with `length_controlled_low` and
        `_high`, `consistent` (share of the pairs on which both orders agree), `words_a`, `words_b` (means).
        Rates are None where nothing was judged.
    """
    judged = [row for row in rows if row["error"] is None]
    found: Row = {"prompts": len(rows), "judged": len(judged)}
    if not judged:
        return found | dict.fromkeys(("win_rate", "low", "high", "length_controlled", "consistent"))
    preferences = np.array([row["preference"] for row in judged])
    lengths = np.array([[len(words(row["answer_a"])), len(words(row["answer_b"]))] for row in judged], float)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(judged), size=(_DRAWS, len(judged)))
    low, high = np.quantile(preferences[draws].mean(axis=1), _tails())
    fits = [length_controlled(preferences[draw], lengths[draw]) for draw in draws[: _DRAWS // 10]]
    fit_low, fit_high = np.quantile(fits, _tails())
    return found | {
        "win_rate": float(preferences.mean()),
        "low": float(low),
        "high": float(high),
        "length_controlled": length_controlled(preferences, lengths),
        "length_controlled_low": float(fit_low),
        "length_controlled_high": float(fit_high),
        "consistent": float(np.mean([row["consistent"] for row in judged])),
        "words_a": float(lengths[:, 0].mean()),
        "words_b": float(lengths[:, 1].mean()),
    }


def _tails() -> list[float]:
    return [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]


def length_controlled(preferences: np.ndarray, lengths: np.ndarray) -> float:
    """A's win rate if both answers had the same length (arXiv 2404.04475, equation 2).

    A logistic regression of the preference on tanh of the standardised difference in length; the rate is what
    it says at difference 0. The paper's third term, the difficulty of each instruction, is fitted on the
    answers of many models, and left out here.

    Args:
        preferences: float64 [N], 0 to 1.
        lengths: float64 [N, 2], words of A and of B.
    """
    from sklearn.linear_model import LogisticRegression

    gap = lengths[:, 0] - lengths[:, 1]
    if not gap.any() or preferences.min() == preferences.max():
        return float(preferences.mean())
    feature = np.tanh(gap / gap.std() if gap.std() else np.sign(gap))[:, None]
    # A preference of 0.75 is three quarters of a win and one of a defeat.
    fitted = LogisticRegression().fit(
        np.concatenate([feature, feature]),
        np.repeat([1, 0], len(preferences)),
        sample_weight=np.concatenate([preferences, 1 - preferences]),
    )
    return float(fitted.predict_proba(np.zeros((1, 1)))[0, 1])


def markdown(results: Mapping[str, Any]) -> str:
    """The figures as a table."""
    rate = "{win_rate:.3f} [{low:.3f}, {high:.3f}]".format(**results)
    names = ("length_controlled", "length_controlled_low", "length_controlled_high")
    even = "{:.3f} [{:.3f}, {:.3f}]".format(*(results[name] for name in names))
    return (
        f"| A | B | prompts | judged | A wins | at equal length | orders agree | words A | words B |\n"
        f"|---|---|---|---|---|---|---|---|---|\n"
        f"| {results['a']} | {results['b']} | {results['prompts']} | {results['judged']} | {rate} | {even} "
        f"| {results['consistent']:.3f} | {results['words_a']:.0f} | {results['words_b']:.0f} |\n"
    )
