"""Stage `generate`: high-quality samples of the five task types, written by the teacher and rated."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa

from lm_mixup.chat.judge import Judge, SharedJudge, rating_columns, share_judge
from lm_mixup.chat.shared import TEACHER, SharedChat, placement_of, share_chat
from lm_mixup.config import BuildConfig, DataConfig, RateConfig, TeacherConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.core.schemas import content_id, table
from lm_mixup.demo import WORLD, write_sample
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.schemas import SCHEMA, parted, refusal
from lm_mixup.mixture.teacher.cost_estimate import forecast
from lm_mixup.mixture.teacher.samples import taught_part

_TRIES = 8


def generate(
    passages: StageDir,
    out: StageDir,
    config: BuildConfig,
    rate: RateConfig,
    teacher: TeacherConfig,
    data: DataConfig,
    seed: int,
) -> Outcome:
    """Writes samples about the passages; keeps those that the judge rates well.

    Samples are spread evenly over the passages. Sample `i` is made from `(seed, i)` alone. A chat model is
    asked once for each sample (`taught`); before that the program says what it will ask for (`forecast`).

    Args:
        passages: The stage that lists passages.
        out: Where the rows go: `samples.SCHEMA`. Samples that the teacher did not write, rated below
            `config.min_score`, not rated, or written before go to the rejects, so that
            planned samples == rows + rejects.
        config: How many samples, of which task types, kept from which score on.
        rate: The judge.
        teacher: Who writes.
        data: Rows of a part.
        seed: Of all choices.

    Raises:
        InputError: The offline teacher was given other passages than those of the closed world, or a
            setting is missing.
    """
    check_teacher(config, teacher)
    sizes = [receipt.rows_out for _, receipt in sorted(passages.receipts().items())]
    if not sum(sizes):
        raise InputError(
            f"build.passages: no passage of {config.passages} can be used; see passages/rejected"
        )
    shared = share_judge(rate_of(rate, teacher), out)
    kwargs = {"passages": passages, "sizes": sizes, "config": config, "judge": shared, "seed": seed}
    items = plan(sum(sizes), config.samples, data.rows_per_part)
    if teacher.backend == "offline":
        map_parts(out, items, _make_work, kwargs, **shared.placement())
        return Outcome(metrics=shared.metrics())
    placement = placement_of(teacher, rate)
    chat = share_chat(teacher, out, TEACHER)
    for line in forecast(passages, config, teacher, rate):
        say(line)
    map_parts(out, items, _make_taught, kwargs | {"chat": chat}, **placement)
    return Outcome(metrics=shared.metrics() | chat.metrics())


def rate_of(rate: RateConfig, teacher: TeacherConfig) -> RateConfig:
    """The judge of what a teacher writes.

    The offline teacher fills the facts of one entity into a question and its answer, so that its rows are
    relevant by construction. To embed them all would take longer than all else in `build`.
    """
    return rate.model_copy(update={"relevance": False}) if teacher.backend == "offline" else rate


def check_teacher(config: BuildConfig, teacher: TeacherConfig) -> None:
    """Refuses passages that the teacher cannot write from.

    Raises:
        InputError: The teacher is offline, and the passages are not of the closed world.
    """
    if teacher.backend == "offline" and config.passages != WORLD:
        raise InputError(
            f"build.passages: the offline teacher cannot write samples from {config.passages}, it knows only "
            "the facts of the closed world; set teacher.backend to openai or vllm, and teacher.model"
        )


def plan(passages: int, samples: int, rows_per_part: int) -> list[dict[str, int]]:
    """The parts: ranges of passages and of samples, none over `rows_per_part` unless one passage alone is.

    Sample `i` is about passage `i · passages // samples`, and all samples of a passage are in one part.
    """
    parts: list[dict[str, int]] = []
    start = 0
    for passage in range(passages):
        stop = -(-(passage + 1) * samples // passages)
        if parts and stop - parts[-1]["first"] <= rows_per_part:
            parts[-1] |= {"stop": stop, "passage_stop": passage + 1}
        elif stop > start:
            parts.append({"first": start, "stop": stop, "passage": passage, "passage_stop": passage + 1})
        start = stop
    return parts


def _make_work(
    passages: StageDir, sizes: list[int], config: BuildConfig, judge: SharedJudge, seed: int
) -> Work:
    made = judge.make()

    def work(item: dict[str, int]) -> PartResult:
        return generate_part(*_chosen(passages, sizes, config, item), item["first"], made, config, seed)

    return work


def _make_taught(
    passages: StageDir, sizes: list[int], config: BuildConfig, judge: SharedJudge, chat: SharedChat, seed: int
) -> Work:
    made, teacher = judge.make(), chat.make()

    def work(item: dict[str, int]) -> PartResult:
        return taught_part(
            *_chosen(passages, sizes, config, item), item["first"], teacher, made, config, seed
        )

    return work


def _chosen(
    passages: StageDir, sizes: list[int], config: BuildConfig, item: dict[str, int]
) -> tuple[list[dict[str, Any]], list[int]]:
    """The passages that samples of a part are about, and for each sample the place of its own among them."""
    wanted = [i * sum(sizes) // config.samples for i in range(item["first"], item["stop"])]
    listed = sorted(set(wanted))
    place = {index: number for number, index in enumerate(listed)}
    return _rows_at(passages, sizes, listed), [place[index] for index in wanted]


def _rows_at(stage: StageDir, sizes: Sequence[int], indices: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of a stage by their numbers, which ascend; only parts that hold one are read, one at a time."""
    rows: list[dict[str, Any]] = []
    start = 0
    for relative, size in zip(stage.parts(), sizes, strict=True):
        here = [index - start for index in indices if start <= index < start + size]
        if here:
            rows += stage.read_part(relative).take(here).to_pylist()
        start += size
    return rows


def generate_part(
    passages: Sequence[dict[str, Any]],
    about: Sequence[int],
    first: int,
    judge: Judge,
    config: BuildConfig,
    seed: int,
) -> PartResult:
    """Writes and rates the samples of one part; those of the test split are in frames held out for it.

    Args:
        passages: Passage rows.
        about: For each sample, the passage it is about.
        first: Number of the first sample.
        judge: Rates the samples.
        config: Task mix and lowest score.
        seed: With the sample's number, makes its choices.
    """
    kinds, shares = list(config.task_mix), list(config.task_mix.values())
    written: set[str] = set()
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for number, index in enumerate(about, start=first):
        passage = passages[index]
        rng = Random(f"generate/{seed}/{number}")
        task_type = rng.choices(kinds, shares)[0]
        for _ in range(1 + _TRIES):
            sample = write_sample(passage, task_type, rng, max_claims=config.max_facts)
            if sample["answer"] not in written:
                break
        reasons.append("duplicate" if sample["answer"] in written else "")
        written.add(sample["answer"])
        about_passage = {name: passage[name] for name in ("source", "entity", "topic", "split")}
        identity = content_id(passage["id"], str(number), sample["answer"])
        rows.append(sample | about_passage | {"id": identity, "passage_id": passage["id"]})
    verdicts = judge.rate([(row["prompt"], row["completion"]) for row in rows])
    rated = table(rows, SCHEMA).to_pydict() | rating_columns(judge.name, verdicts)
    scores = rated["score"]
    reasons = [
        reason or refusal(score, config.min_score) for reason, score in zip(reasons, scores, strict=True)
    ]
    return parted(pa.table(rated, schema=SCHEMA), reasons)
