"""A whole run: what `configs/*.yaml` holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lm_mixup.config.augment import (
    AugmentConfig,
    ClusterConfig,
    CurateConfig,
    DistillConfig,
    EmbedConfig,
    IngestConfig,
    NeighborsConfig,
    RateDistilledConfig,
    SelectConfig,
)
from lm_mixup.config.build import BuildConfig
from lm_mixup.config.evaluate import BenchmarkConfig, CompareConfig, MappingConfig
from lm_mixup.config.models import EmbedderConfig, ModelConfig, RateConfig, TeacherConfig
from lm_mixup.config.rewards import LibraryConfig, RewardsConfig
from lm_mixup.config.section import Section, resources
from lm_mixup.config.train import FinetuneConfig, GrpoConfig, SftConfig, TrackingConfig


class RayConfig(Section):
    """Where Ray runs. Without an address, the cluster in RAY_ADDRESS or else a local one."""

    address: str | None = resources(None, description="`auto`, `host:port`, or nothing for a local cluster.")
    accelerator: Literal["auto", "cpu", "gpu"] = resources(
        "auto",
        description="What models run on. `auto`: GPUs, where the cluster has any or may start some.",
    )
    num_cpus: int | None = resources(None, ge=1, description="CPUs of a local cluster; default: all.")
    dashboard: bool = resources(
        False, description="Ray's dashboard on a local cluster: http://127.0.0.1:8265."
    )
    object_store_gib: float = resources(1.0, gt=0.1, description="Object store of a local cluster, GiB.")


class DataConfig(Section):
    """How rows are laid out in files."""

    rows_per_part: int = Field(
        2048, ge=1, description="Rows of one Parquet part: the unit of work and resume."
    )


class ReportConfig(Section):
    """The HTML page."""

    title: str = Field("", description="Heading of the page; default: the pool's name.")
    examples: int = Field(
        60, ge=0, description="Distilled rows shown beside their parents: as many kept and as many rejected."
    )


class Config(Section):
    """A whole run: what `configs/*.yaml` holds."""

    seed: int = Field(0, description="Seed of all random draws.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig)
    ray: RayConfig = resources(RayConfig())
    data: DataConfig = Field(default_factory=DataConfig)
    build: BuildConfig = Field(default_factory=BuildConfig)
    sft: SftConfig = Field(default_factory=SftConfig)
    library: LibraryConfig = Field(default_factory=LibraryConfig)
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    grpo: GrpoConfig = Field(default_factory=GrpoConfig)
    tracking: TrackingConfig = resources(TrackingConfig())
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    rate: RateConfig = Field(default_factory=RateConfig)
    embed: EmbedConfig = Field(default_factory=EmbedConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    neighbors: NeighborsConfig = Field(default_factory=NeighborsConfig)
    curate: CurateConfig = Field(default_factory=CurateConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    rate_distilled: RateDistilledConfig = Field(default_factory=RateDistilledConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    mapping: MappingConfig = Field(default_factory=MappingConfig)
    compare: CompareConfig = Field(default_factory=CompareConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @model_validator(mode="after")
    def _enough_neighbors(self) -> Config:
        if self.select.method in ("knn_diversity", "ds2") and self.select.neighbors > self.neighbors.k:
            raise ValueError(
                f"select.neighbors ({self.select.neighbors}) must not exceed neighbors.k "
                f"({self.neighbors.k}) with select.method {self.select.method}"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_sets(self) -> Config:
        if self.embed.decontaminate and not self.eval_files():
            raise ValueError(
                "embed.decontaminate.files: name evaluation sets, here or in ingest.decontaminate"
            )
        return self

    def eval_files(self) -> list[str]:
        """The evaluation sets that embeddings are compared with: none if that is off."""
        if self.embed.decontaminate is None:
            return []
        ngrams = self.ingest.decontaminate
        return self.embed.decontaminate.files or (ngrams.files if ngrams else [])
