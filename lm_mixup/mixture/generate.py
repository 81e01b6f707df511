"""Stage `generate`: high-quality samples of the five task types, written by the teacher and rated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_mixup.config import BuildConfig, DataConfig, RateConfig, TeacherConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.demo import WORLD
from lm_mixup.distributed.map_parts import PartResult, Work, map_parts
from lm_mixup.mixture.teacher.cost_estimate import forecast
from lm_mixup.mixture.writers import SharedWriter, share_writer


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
    asked once for each sample; before that the program says what it will ask for (`forecast`).

    Args:
        passages: The stage that lists passages.
        out: Where the rows go: `schemas.SCHEMA`. Samples that the teacher did not write, rated below
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
    writer = share_writer(teacher, rate, out, config, seed)
    placement = writer.placement()
    if teacher.backend != "offline":
        for line in forecast(passages, config, teacher, rate):
            say(line)
    items = plan(sum(sizes), config.samples, data.rows_per_part)
    kwargs = {"passages": passages, "sizes": sizes, "samples": config.samples, "writer": writer}
    map_parts(out, items, _make_work, kwargs, **placement)
    return Outcome(metrics=writer.metrics())


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


def _make_work(passages: StageDir, sizes: list[int], samples: int, writer: SharedWriter) -> Work:
    made = writer.make()

    def work(item: dict[str, int]) -> PartResult:
        return made.samples(*_chosen(passages, sizes, samples, item), item["first"])

    return work


def _chosen(
    passages: StageDir, sizes: list[int], samples: int, item: dict[str, int]
) -> tuple[list[dict[str, Any]], list[int]]:
    """The passages that samples of a part are about, and for each sample the place of its own among them."""
    wanted = [i * sum(sizes) // samples for i in range(item["first"], item["stop"])]
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
