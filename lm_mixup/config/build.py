"""MIXTURE: what it is built from, and how."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from lm_mixup.config.section import ScoreCutSetting, Section, resources
from lm_mixup.core.task_types import TASK_TYPES, Fault, TaskType


class SamplesFrom(Section):
    """A file, folder or glob of good rows, and which of them are taken."""

    path: str = Field(
        description="JSONL or Parquet as in `augment.pool`, in any layout that `ingest` reads; or passages "
        "{title, text}, questions {question, choices, answer}, claims {sentence, label, explanation}; "
        "`world`: the closed world; `pool`: the best-rated rows of augment.pool."
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Our column → the file's, beside those of ingest.columns."
    )
    sources: list[str] = Field(
        default_factory=list, description="Take rows of these sources alone; patterns such as flan_cot_* too."
    )
    min_score: ScoreCutSetting = Field(
        4,
        description='Rows with a lower score (of `pool`, curated score) are not taken; or "top 10%" of those '
        "rated. Rows of files without a score are taken as good.",
    )
    max_rows: int | None = Field(None, ge=1, description="Most rows, drawn with the seed; default: all.")
    max_chars: int = Field(1200, ge=50, description="Longest prompt or completion.")
    share: float | None = Field(
        None, gt=0, le=1, description="Share of the MIXTURE rows that these lead; default: by their number."
    )
    reasoning_calls: bool = Field(
        True, description="Leave calls such as `Let's think step by step` in the prompts."
    )


class BuildConfig(Section):
    """MIXTURE from passages, from good rows, or as others published it."""

    mixture: str | None = Field(
        None,
        description="A published MIXTURE to train on, in place of one written from passages: "
        "`hf:dokiik/MIXTURE[@REVISION]`, or a folder with data_sft/ and data_grpo/.",
    )
    mixture_separator: str | None = Field(
        None, min_length=1, description="What stands between the inputs of its rows; default: recognised."
    )
    samples_from: str | dict[str, SamplesFrom] | None = Field(
        None,
        description="Good rows that targets are made of by rule, with no teacher asked: a file, folder or "
        "glob, or several by name with what is taken of each; `pool`: the best-rated rows of augment.pool.",
    )
    passages: str = Field(
        "world",
        description="`world` (the closed world), or documents of {id, title, text}: JSONL or Parquet files, "
        "a folder or glob of them, local or at any fsspec URI; or a data set on the Hub, "
        "`hf:wikimedia/wikipedia:20231101.en[@SPLIT]`.",
    )
    max_documents: int | None = Field(
        None,
        ge=1,
        description="Most documents that are read, in runs drawn from all over the files; default: all.",
    )
    passage_words: int = Field(
        300, ge=20, description="Most words of a passage; longer texts are cut between sentences."
    )
    passage_min_words: int = Field(15, ge=1, description="Passages with fewer words are refused.")
    samples: int = Field(3000, ge=1, description="High-quality samples to write.")
    task_mix: dict[TaskType, float] = Field(
        default={"qa": 0.3, "mcq": 0.2, "tfq": 0.2, "cs": 0.15, "para": 0.15},
        description="Share of samples of each task type.",
    )
    min_score: int = Field(4, ge=0, le=5, description="High-quality samples are kept at this score or above.")
    min_inputs: int = Field(2, ge=2, le=20, description="Fewest low-quality inputs of a MIXTURE row.")
    max_inputs: int = Field(5, ge=2, le=20, description="Most low-quality inputs of a MIXTURE row.")
    size_mix: dict[int, float] | None = Field(
        None,
        description="Share of samples by the number of inputs that are written for them, such as "
        "{2: 3, 5: 2, 20: 1}; default: all numbers from min_inputs to max_inputs alike.",
    )
    fault_mix: dict[Fault, float] | None = Field(
        None,
        description="Share of the inputs that tell something by what is poor about them: `incomplete`, "
        "`register`, `redundant`, `reasoning` (cut short), and of multiple-choice samples `options` (dealt "
        "out to two inputs). Default: {incomplete: 2, register: 1, redundant: 1}. `vague` ones tell nothing.",
    )
    max_facts: int = Field(
        4,
        ge=1,
        le=4,
        description="Most facts that a target of the closed world tells of the three or four that its inputs "
        "tell: fewer make a poor teacher.",
    )
    cot_rate: float = Field(1.0, ge=0, le=1, description="Share of rows whose target carries its reasoning.")
    noise_rate: float = Field(0.2, ge=0, le=1, description="Share of rows whose inputs get surface noise.")
    fiction_rate: float = Field(
        0.0, ge=0, le=1, description="Share of SFT rows of the closed world with invented names and values."
    )
    crosstopic_rate: float = Field(
        0.1, ge=0, le=1, description="Share of rows merged from two close samples."
    )
    crosstopic_min_similarity: float = Field(
        0.5, ge=-1, le=1, description="Least cosine of two samples of a teacher model that it merges."
    )
    max_row_chars: int = Field(
        4000, ge=200, description="Longest row made of good rows: characters of its inputs and its target."
    )
    grpo_fraction: float = Field(0.2, ge=0, lt=1, description="Share of entities held for GRPO prompts.")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="Share of entities held for the test split.")
    dev_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of entities held for the dev split, by which training chooses its model; of a "
        "published MIXTURE, share of the targets of its sft split.",
    )
    split_seed: int = Field(
        0,
        description="Decides which entities are held out. Apart from `seed`, so that what a model was never "
        "trained on stays the same: with the default, `nano` has not seen the closed world's test split.",
    )
    num_actors: int = resources(1, ge=1, description="Actors that assemble MIXTURE.")

    def reads_pool(self) -> bool:
        """Whether good rows are taken from the pool, which must be rated before."""
        return any(entry.path == "pool" for entry in self.entries().values())

    def entries(self) -> dict[str, SamplesFrom]:
        """The entries of `samples_from` by name; a bare path is one, named `samples`."""
        if self.samples_from is None:
            return {}
        if isinstance(self.samples_from, str):
            return {"samples": SamplesFrom(path=self.samples_from)}
        return dict(self.samples_from)

    @field_validator("task_mix")
    @classmethod
    def _mix(cls, mix: dict[TaskType, float]) -> dict[TaskType, float]:
        if any(share < 0 for share in mix.values()) or sum(mix.values()) <= 0:
            raise ValueError(
                f"shares must be non-negative and not all zero; task types are {list(TASK_TYPES)}"
            )
        return mix

    @field_validator("fault_mix")
    @classmethod
    def _faults(cls, mix: dict[Fault, float] | None) -> dict[Fault, float] | None:
        if mix is not None:
            if "vague" in mix:
                raise ValueError("vague inputs tell nothing, they fill up what the others leave")
            if any(share < 0 for share in mix.values()) or sum(mix.values()) <= mix.get("options", 0):
                raise ValueError("shares must be non-negative, one beside `options` positive")
        return mix

    @model_validator(mode="after")
    def _ordered(self) -> BuildConfig:
        if self.min_inputs > self.max_inputs:
            raise ValueError("min_inputs must not exceed max_inputs")
        if self.size_mix is not None:
            outside = [size for size in self.size_mix if not self.min_inputs <= size <= self.max_inputs]
            if outside:
                raise ValueError(f"size_mix: {outside[0]} is not within min_inputs and max_inputs")
            if any(share < 0 for share in self.size_mix.values()) or sum(self.size_mix.values()) <= 0:
                raise ValueError("size_mix: shares must be non-negative and not all zero")
        if self.mixture is not None and self.samples_from is not None:
            raise ValueError("mixture and samples_from are two ways to a MIXTURE: give one")
        if self.passage_min_words > self.passage_words:
            raise ValueError("passage_min_words must not exceed passage_words")
        return self
