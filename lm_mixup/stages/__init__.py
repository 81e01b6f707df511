"""The stages: which follows which, what each reads, and which settings decide its output."""

from __future__ import annotations

from lm_mixup.config import Config
from lm_mixup.core.run_dir import RunDir, StageDir
from lm_mixup.stages import augment, build, evaluate, train
from lm_mixup.stages.stage import Stage, choose_input

_RUN = {"build": build.STAGES, "train": train.STAGES, "augment": augment.STAGES}
_BY_VERB = _RUN | {"evaluate": evaluate.STAGES}

GROUPS = {verb: tuple(dict.fromkeys(row.name for row in rows)) for verb, rows in _BY_VERB.items()}
"""Every stage that a verb can have, in order."""
STAGES: tuple[str, ...] = sum(GROUPS.values(), ())
VERBS = {verb: (verb,) for verb in _BY_VERB} | {"run": tuple(_RUN)}


def stages_of(verb: str, config: Config) -> dict[str, Stage]:
    """The stages of a verb that a config has, by name, in order."""
    rows = [row for part in VERBS[verb] for row in _BY_VERB[part]]
    if "build" in VERBS[verb] and config.build.reads_pool():
        # Good rows of the pool are known once it is curated: `build` begins with that, `augment` skips it.
        rated = augment.STAGES[: 1 + [row.name for row in augment.STAGES].index("curate")]
        rows = [*rated, *rows]
    return {row.name: row for row in rows if row.when(config)}


def all_stages(config: Config) -> dict[str, Stage]:
    """The stages of every verb that a config has."""
    return {name: stage for verb in _BY_VERB for name, stage in stages_of(verb, config).items()}


def required_inputs(stage: Stage, config: Config) -> tuple[str, ...]:
    """What must be done before a stage runs: names, or `a|b` where one of several will do."""
    known = all_stages(config)
    return tuple(
        name.removesuffix("?")
        for name in stage.inputs
        if not (name.endswith("?") and name.removesuffix("?") not in known)
    )


def open_inputs(stage: Stage, config: Config, run: RunDir) -> list[StageDir | None]:
    """What a stage is passed for its `inputs`.

    Raises:
        InputError: An input stage is not done.
    """
    required = required_inputs(stage, config)
    return [
        choose_input(run, name.removesuffix("?")) if name.removesuffix("?") in required else None
        for name in stage.inputs
    ]


__all__ = [
    "GROUPS",
    "STAGES",
    "VERBS",
    "Stage",
    "all_stages",
    "open_inputs",
    "required_inputs",
    "stages_of",
]
