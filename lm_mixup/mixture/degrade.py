"""Stage `degrade`: poor variants of each high-quality sample, which together still hold all that it tells."""

from __future__ import annotations

from lm_mixup.config import BuildConfig, RateConfig, TeacherConfig
from lm_mixup.core.run_dir import Outcome, StageDir
from lm_mixup.distributed.map_parts import Work, map_parts
from lm_mixup.mixture.writers import SharedWriter, share_writer


def degrade(
    generate: StageDir,
    out: StageDir,
    config: BuildConfig,
    rate: RateConfig,
    teacher: TeacherConfig,
    seed: int,
) -> Outcome:
    """Writes `config.min_inputs` to `config.max_inputs` poor variants of each sample and rates them.

    Args:
        generate: The stage that wrote the samples.
        out: Where the rows go: `variant_plan.SCHEMA`. Variants that come out at `config.min_score` or better
            time and again, and those that could not be written or rated, are rejected.
        config: How many variants.
        rate: The judge.
        teacher: Who writes; the one that wrote the samples.
        seed: Of all choices.
    """
    writer = share_writer(teacher, rate, out, config, seed)
    map_parts(
        out, generate.parts(), _make_work, {"generate": generate, "writer": writer}, **writer.placement()
    )
    return Outcome(metrics=writer.metrics())


def _make_work(generate: StageDir, writer: SharedWriter) -> Work:
    made = writer.make()
    return lambda relative: made.variants(generate.read_part(relative))
