"""A pool on its way to a training set: every stage of `augment`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lm_mixup.config.section import ScoreCutSetting, Section, resources

SelectMethod = Literal[
    "long_tail",
    "score",
    "random",
    "longest",
    "knn_diversity",
    "alpagasus",
    "deita",
    "ds2",
    "perplexity",
    "less",
]


class AugmentConfig(Section):
    """The pool to be distilled."""

    pool: str = Field(
        "world",
        description="JSONL or Parquet: a file, folder, glob or URI; a folder of `save_to_disk`; "
        "`hf:ORG/NAME[:CONFIG][@SPLIT]`; `world`: the demo pool.",
    )
    policy: str | None = Field(
        None,
        description="Distiller to use: whatever `model.path` takes; default: grpo/model of this run, else "
        "sft/model.",
    )
    demo_policy: bool = Field(
        False,
        description="Allow the demonstration model on a pool of your own, although it understands the closed "
        "world alone.",
    )


class NearDuplicatesConfig(Section):
    """Folding rows that say the same in nearly the same words (MinHash LSH, verified exactly)."""

    threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of the word n-grams from which rows are the same."
    )
    completion_threshold: float = Field(
        0.5, ge=0, le=1, description="The same for the completions alone: other answers are other rows."
    )
    ngram: int = Field(2, ge=1, le=16, description="Words of an n-gram.")
    num_perm: int = Field(128, ge=16, le=1024, description="Hash functions of a MinHash signature.")
    recall: float = Field(
        0.98,
        gt=0,
        lt=1,
        description="Probability that a pair at the threshold is compared; closer pairs: higher.",
    )


class DecontaminateConfig(Section):
    """Refusing rows that share text with evaluation sets."""

    files: list[str] = Field(
        min_length=1, description="Evaluation sets: whatever a pool can be, JSONL, Parquet, folders, globs."
    )
    ngram: int = Field(
        13, ge=2, le=64, description="N-gram length: rows that share so many consecutive words are rejected."
    )
    min_words: int = Field(
        8, ge=1, description="Items shorter than `ngram` count as a whole; below this many words, not at all."
    )
    columns: list[str] = Field(
        default_factory=list,
        description="Text columns of the evaluation sets; default: the question, under its common names.",
    )


class IngestConfig(Section):
    """Reading the pool."""

    max_chars: int = Field(
        100_000, ge=100, description="Longest prompt or completion; longer rows are refused."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Our column → the pool's, e.g. {prompt: question}; recognised if empty.",
    )
    turns: Literal["first", "last", "all", "reject"] = Field(
        "last",
        description="Which answer of a conversation is the row, what was said before being its prompt: the "
        "first, the last, each (a row for each), or none (conversations are refused as `multi_turn`).",
    )
    split_mib: float = Field(
        8.0, gt=0, description="JSONL files are read in pieces of this size, a piece a part."
    )
    near_duplicates: NearDuplicatesConfig | None = Field(
        None,
        description="Keep the first of rows that are nearly the same; `{}` for the defaults; off if null.",
    )
    decontaminate: DecontaminateConfig | None = Field(
        None, description="Refuse rows that share n-grams with evaluation sets; off if null."
    )
    world_rows: int = Field(600, ge=1, description="Rows of the demo pool, for `pool: world`.")
    num_actors: int = resources(1, ge=1, description="Actors that work at a time.")


class EmbedDecontaminateConfig(Section):
    """Refusing rows that say the same as an evaluation item in other words."""

    files: list[str] = Field(
        default_factory=list,
        description="Evaluation sets, as in `ingest.decontaminate`; default: those named there.",
    )
    min_similarity: float = Field(
        0.8, gt=0, le=1, description="Cosine to an evaluation item from which a row is refused."
    )
    columns: list[str] = Field(
        default_factory=list,
        description="Columns that make up an item's text; default: the question, under its common names.",
    )


class EmbedConfig(Section):
    """The embeddings of the pool; `embedder` is the model."""

    decontaminate: EmbedDecontaminateConfig | None = Field(
        None, description="Refuse rows whose embedding is close to an evaluation item's; off if null."
    )


class NeighborsConfig(Section):
    """Nearest neighbours of every pool row."""

    k: int = Field(16, ge=1, description="Neighbours kept of each row.")
    exact_below: int = Field(
        300_000, ge=2, description="Exact search up to this many rows; approximate above."
    )
    cell_rows: int = Field(1024, ge=2, description="Rows of a cell of the approximate search.")
    probes: int = Field(32, ge=1, description="Nearest cells that each row is looked up in.")
    num_actors: int = resources(1, ge=1, description="Actors that work at a time.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs per actor.")
    num_gpus: float = resources(0.0, ge=0, description="GPUs an actor (fractions allowed).")


class CurateConfig(Section):
    """Score curation (DS2)."""

    enabled: bool = Field(True, description="Off: scores pass through with confidence 1.")
    neighbors: int = Field(2, ge=2, description="Nearest neighbours that vote on a row's score.")
    min_similarity: float = Field(0.7, ge=-1, le=1, description="Least cosine of a neighbour that votes.")
    min_confidence: float = Field(
        0.5, ge=0, le=1, description="Vote confidence from which a score is corrected."
    )
    steps: int = Field(1500, ge=1, description="Gradient steps of the transition matrix's fit.")
    num_actors: int = resources(1, ge=1, description="Actors that work at a time.")


class ClusterConfig(Section):
    """Size-bounded clusters of low-quality rows."""

    min_size: int = Field(2, ge=1, le=20, description="Fewest rows of a cluster.")
    max_size: int = Field(5, ge=1, le=20, description="Most rows of a cluster.")
    min_similarity: float = Field(
        0.3, ge=-1, le=1, description="Least mean cosine of a row to the other rows of its cluster."
    )
    min_content_similarity: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Least cosine of two rows' rare words, so that the rows of a cluster share a topic, not "
        "just a phrasing; 0: not compared.",
    )
    low_below: ScoreCutSetting = Field(
        4, description='Rows with a curated score below this are clustered; or "top 10%": all rows but those.'
    )
    by_source: bool = Field(True, description="Clusters never cross sources.")
    cell_rows: int = Field(1024, ge=16, description="Rows of one coarse cell: the unit of parallel work.")
    num_tasks: int = resources(2, ge=1, description="Tasks that work at a time.")

    @model_validator(mode="after")
    def _ordered(self) -> ClusterConfig:
        if self.min_size > self.max_size:
            raise ValueError("min_size must not exceed max_size")
        return self


class DistillConfig(Section):
    """Generation of one row a cluster."""

    max_prompt_length: int = Field(2400, ge=8, description="Tokens; longer prompts are refused.")
    max_completion_length: int = Field(2400, ge=8, description="Tokens; what is longer is cut off.")
    temperature: float = Field(0.0, ge=0, description="Of sampling; 0 is greedy.")
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="Above 1: tokens that the prompt or the output holds are less likely (paper: 1.05).",
    )
    num_tasks: int = resources(2, ge=1, description="Tasks at a time that gather the members of clusters.")
    num_actors: int = resources(1, ge=1, description="Actors that work at a time.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an actor.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs of one engine.")


class ScoringConfig(Section):
    """A pass of a language model over rows that are there, for their log-probabilities."""

    model: str | None = Field(None, description="Which model scores: whatever `model.path` takes.")
    max_length: int = Field(
        2048, ge=16, description="Tokens of a prompt and what follows; longer rows are refused."
    )
    num_actors: int = resources(1, ge=1, description="Actors that work at a time.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an actor.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs of one engine.")
    gpu_memory_utilization: float = resources(
        0.8, gt=0, lt=1, description="vLLM's share of each GPU; prompts' logits need room beside it."
    )
    kv_cache_gib: int = resources(1, ge=1, description="vLLM's key-value cache on CPU, GiB.")


class LikelihoodConfig(ScoringConfig):
    """How much likelier a distilled row is given its own inputs than given another cluster's."""

    model: str | None = Field(
        None,
        description="Which model scores: whatever `model.path` takes, e.g. the policy; none: no such pass.",
    )
    min_gain: float | None = Field(
        None,
        description="Least gain in nats a token; rows below are rejected. None: the gain is only written.",
    )


class RateDistilledConfig(Section):
    """The gate that distilled rows pass before they are rated."""

    min_faithfulness: float = Field(
        0.6, ge=0, le=1, description="Least faithfulness to the inputs; one unsupported fact halves it."
    )
    min_coverage: float = Field(
        0.8, ge=0, le=1, description="Least share of the inputs' information that a distilled row carries."
    )
    min_question_words: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Of a row that asks in numbered parts, each of which must have its answer: least share "
        "of a source's question that its part keeps; without its text it cannot be answered. 0: not checked.",
    )
    likelihood: LikelihoodConfig = Field(
        default_factory=LikelihoodConfig, description="Of the stage `likelihood`."
    )


class PerplexityConfig(ScoringConfig):
    """The pass over all rows that `select.method: perplexity` asks for, and no other method."""

    model: str | None = Field(
        None, description="Whose perplexity: whatever `model.path` takes; default: model.path."
    )
    take: Literal["low", "mid", "high"] = Field(
        "mid", description="Lowest first, nearest to the median first, or highest first."
    )


class LessConfig(Section):
    """The pass over all rows that `select.method: less` asks for, and no other method (arXiv 2402.04333)."""

    target: str | None = Field(
        None, description="Rows like those the model is to do well on, in any layout that `ingest` reads."
    )
    target_rows: int = Field(64, ge=1, description="Most rows of the target; more are sampled.")
    model: str | None = Field(
        None, description="Whose gradients: whatever `model.path` takes; default: model.path."
    )
    rank: int = Field(8, ge=1, description="Of the adapters whose gradients are taken.")
    dimension: int = Field(4096, ge=16, description="Numbers that a gradient is sketched to.")
    max_length: int = Field(
        1024, ge=16, description="Tokens of prompt and completion; longer rows are refused."
    )
    num_actors: int = resources(1, ge=1, description="Actors that work at a time.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an actor.")
    num_gpus: float = resources(1.0, ge=0, description="GPUs of an actor, on a cluster that has some.")


class SelectConfig(Section):
    """The final training set."""

    method: SelectMethod = Field("long_tail", description="How rows are ranked; docs/data.md has a table.")
    budget: int | str = Field("3%", description='Rows, or a percentage of the pool such as "3%".')
    original_ratio: float = Field(0.5, ge=0, le=1, description="Share of originals among the selected rows.")
    stratify_by: Literal["none", "source", "task_type"] = Field(
        "none", description="Each side's rows are shared out over these in proportion to their candidates."
    )
    min_score: ScoreCutSetting = Field(
        4, description="Least score; originals under a method with a rule of its own need none."
    )
    faithfulness_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight of faithfulness × coverage³ in the rank of distilled rows, beside the method's.",
    )
    neighbors: int = Field(15, ge=1, description="Nearest neighbours of the long-tail score.")
    score_threshold: float = Field(
        4.5, ge=0, le=5, description="alpagasus: least rating of the judge, `overall` / 2."
    )
    similarity_threshold: float = Field(
        0.9, gt=-1, le=1, description="deita: a row as similar as this to a chosen one is passed over."
    )
    perplexity: PerplexityConfig = Field(
        default_factory=PerplexityConfig, description="Of `method: perplexity`."
    )
    less: LessConfig = Field(default_factory=LessConfig, description="Of `method: less`.")

    @field_validator("budget")
    @classmethod
    def _budget(cls, budget: int | str) -> int | str:
        text = str(budget).strip()
        try:
            value = float(text[:-1]) if text.endswith("%") else int(text)
        except ValueError:
            raise ValueError('budget is a number of rows or a percentage such as "3%"') from None
        if value <= 0 or (text.endswith("%") and value > 100):
            raise ValueError("budget must be positive, and at most 100%")
        return text if text.endswith("%") else int(text)
