"""What writing MIXTURE with a teacher will ask for, said before the first request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lm_mixup.chat.rate_limits import cost_of
from lm_mixup.config import BuildConfig, ChatConfig, RateConfig, TeacherConfig
from lm_mixup.core.run_dir import StageDir
from lm_mixup.mixture.teacher.prompts import conversation

# Characters of what the models write, about: a sample with its facts, a variant, a rating.
_SAMPLE_CHARS, _VARIANT_CHARS, _RATING_CHARS = 900, 140, 75
_RATING_TASK_CHARS = 1400
_CHARS_A_TOKEN: Final = 4


@dataclass(frozen=True)
class Load:
    """Requests to one model, and their tokens, where nothing is refused or asked twice."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def plus(self, requests: float, prompt_chars: float, completion_chars: float) -> Load:
        """With more requests of such lengths."""
        return Load(
            self.requests + round(requests),
            self.prompt_tokens + round(requests * prompt_chars / _CHARS_A_TOKEN),
            self.completion_tokens + round(requests * completion_chars / _CHARS_A_TOKEN),
        )


def forecast(passages: StageDir, config: BuildConfig, teacher: TeacherConfig, rate: RateConfig) -> list[str]:
    """The plan in lines: samples, and for each model requests, tokens and cost.

    An upper estimate: every sample is taken to be kept, no variant to be asked for again.

    Args:
        passages: The stage that lists passages; the first part with rows is taken for all.
        config: How many samples and variants.
        teacher: Its prices.
        rate: The judge; nothing is said of the offline one.
    """
    parts = (part["text"].to_pylist() for part in passages.iter_parts(["text"]))
    first: list[str] = next((texts for texts in parts if texts), [])
    passage_chars = sum(map(len, first)) / max(1, len(first))
    asked, rated = loads(config, passage_chars)
    count = sum(receipt.rows_out for receipt in passages.receipts().values())
    lines = [f"plan: {config.samples:,} samples from {count:,} passages", _line("teacher", teacher, asked)]
    if rate.backend != "offline":
        lines.append(_line("judge", rate, rated))
    return lines


def loads(config: BuildConfig, passage_chars: float) -> tuple[Load, Load]:
    """What the teacher and the judge are asked for.

    Args:
        config: How many samples and variants.
        passage_chars: Mean length of a passage.
    """
    sizes = config.size_mix or dict.fromkeys(range(config.min_inputs, config.max_inputs + 1), 1.0)
    variants = sum(size * share for size, share in sizes.items()) / sum(sizes.values())
    none = Load(0, 0, 0)
    teacher = none.plus(config.samples, _task_chars() + passage_chars, _SAMPLE_CHARS)
    teacher = teacher.plus(config.samples, _task_chars() + _SAMPLE_CHARS, variants * _VARIANT_CHARS)
    judge = none.plus(config.samples, _RATING_TASK_CHARS + _SAMPLE_CHARS / 2, _RATING_CHARS)
    judge = judge.plus(config.samples * variants, _RATING_TASK_CHARS + _VARIANT_CHARS, _RATING_CHARS)
    merges = config.crosstopic_rate * config.samples / (1 + config.crosstopic_rate)
    teacher = teacher.plus(merges, _task_chars() + 3 * _SAMPLE_CHARS, _SAMPLE_CHARS)
    judge = judge.plus(merges, _RATING_TASK_CHARS + _SAMPLE_CHARS, _RATING_CHARS)
    return teacher, judge


def _task_chars() -> int:
    return len(conversation("qa", {"take": 1}, {})[0]["content"])


def _line(who: str, config: ChatConfig, load: Load) -> str:
    price = ""
    if config.price_per_million is not None:
        price = f", cost about {cost_of(config, load.prompt_tokens, load.completion_tokens):,.2f}"
        price += f" (stops at {config.max_cost:g})" if config.max_cost is not None else " (no max_cost)"
    return (
        f"{who} {config.model}: about {load.requests:,} requests, {load.prompt_tokens:,} prompt tokens, "
        f"{load.completion_tokens:,} completion tokens{price}"
    )
