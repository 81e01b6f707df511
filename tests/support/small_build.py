"""A small build for tests: how many samples, its config, and a judge that always says the same."""

from __future__ import annotations

from lm_mixup.config import BuildConfig

SAMPLES = 489


def build(**values):
    return BuildConfig.model_validate({"samples": SAMPLES, **values})


class FixedJudge:
    """Gives every row the same verdict."""

    name = "fixed"

    def __init__(self, verdict):
        self.verdict = verdict

    def rate(self, rows):
        return [self.verdict] * len(rows)
