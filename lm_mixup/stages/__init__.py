"""The stages: which follows which, what each reads, and which config values decide its output."""

from __future__ import annotations

from lm_mixup.config import Config
from lm_mixup.stages import augment, build, evaluate, train
from lm_mixup.stages.stage import Context, Stage

_RUN = {"build": build.STAGES, "train": train.STAGES, "augment": augment.STAGES}
_BY_VERB = _RUN | {"evaluate": evaluate.STAGES}
STAGES: tuple[Stage, ...] = sum(_BY_VERB.values(), ())
BY_NAME = {stage.name: stage for stage in STAGES}

GROUPS = {verb: tuple(stage.name for stage in stages) for verb, stages in _BY_VERB.items()}
VERBS = GROUPS | {"run": tuple(name for verb in _RUN for name in GROUPS[verb])}


def stages_of(verb: str, config: Config) -> tuple[str, ...]:
    """The stages of a verb that a config has, in order."""
    return tuple(name for name in VERBS[verb] if BY_NAME[name].when(config))


def inputs_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """The stages that a stage reads under a config."""
    return tuple(name for name in stage.inputs if stage.reads(config) and BY_NAME[name].when(config))


__all__ = ["BY_NAME", "GROUPS", "STAGES", "VERBS", "Context", "Stage", "inputs_of", "stages_of"]
