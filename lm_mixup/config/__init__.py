"""The YAML configuration as pydantic models.

One model a section, and a stage is given only its own section. Unknown keys are errors that name the nearest
valid key. Fields marked `resources()` say how fast the work is done and not what comes out: they are left out
of the stage fingerprints, so a run may be resumed with more workers without redoing finished stages.

This module imports neither Ray, torch nor vLLM: `lm-mixup config` answers in well under a second.
"""

from __future__ import annotations

from lm_mixup.config.augment import (
    AugmentConfig,
    ClusterConfig,
    CurateConfig,
    DecontaminateConfig,
    DistillConfig,
    EmbedConfig,
    EmbedDecontaminateConfig,
    IngestConfig,
    LessConfig,
    LikelihoodConfig,
    NearDuplicatesConfig,
    NeighborsConfig,
    PerplexityConfig,
    RateDistilledConfig,
    ScoringConfig,
    SelectConfig,
    SelectMethod,
)
from lm_mixup.config.build import BuildConfig, SamplesFrom
from lm_mixup.config.evaluate import BenchmarkConfig, CompareConfig, MappingConfig
from lm_mixup.config.models import (
    ChatConfig,
    EmbedderConfig,
    ModelConfig,
    PriceConfig,
    RateConfig,
    TeacherConfig,
)
from lm_mixup.config.rewards import CustomReward, LibraryConfig, RewardsConfig, RewardWeights
from lm_mixup.config.run import Config, DataConfig, RayConfig, ReportConfig
from lm_mixup.config.section import Section, resources
from lm_mixup.config.train import FinetuneConfig, GrpoConfig, LoraConfig, SftConfig, TrackingConfig

__all__ = [
    "AugmentConfig",
    "BenchmarkConfig",
    "BuildConfig",
    "ChatConfig",
    "ClusterConfig",
    "CompareConfig",
    "Config",
    "CurateConfig",
    "CustomReward",
    "DataConfig",
    "DecontaminateConfig",
    "DistillConfig",
    "EmbedConfig",
    "EmbedDecontaminateConfig",
    "EmbedderConfig",
    "FinetuneConfig",
    "GrpoConfig",
    "IngestConfig",
    "LibraryConfig",
    "LoraConfig",
    "MappingConfig",
    "ModelConfig",
    "NearDuplicatesConfig",
    "NeighborsConfig",
    "LessConfig",
    "LikelihoodConfig",
    "PerplexityConfig",
    "PriceConfig",
    "RateConfig",
    "RateDistilledConfig",
    "ScoringConfig",
    "RayConfig",
    "ReportConfig",
    "RewardWeights",
    "RewardsConfig",
    "Section",
    "SamplesFrom",
    "SelectConfig",
    "SelectMethod",
    "SftConfig",
    "TeacherConfig",
    "TrackingConfig",
    "resources",
]
