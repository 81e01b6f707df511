"""What `evaluate` measures a model by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lm_mixup.config.section import Section, resources


class BenchmarkConfig(Section):
    """Benchmarks, through lm-eval (the extra `eval`)."""

    tasks: list[str] = Field(
        [],
        description="Tasks, groups or tags of lm-eval, or paths of task files. None: the stage is left out.",
    )
    model: str | list[str] | None = Field(
        None,
        description="What is measured: folders, Hub names or names of the package. Default: the fine-tuned "
        "model and its base.",
    )
    data_dir: str | None = Field(
        None,
        description="Folder with mmlu_test.jsonl, mmlu_dev.jsonl, gsm8k_test.jsonl, bbh.jsonl or "
        "truthfulqa.jsonl, which these tasks then read in place of the Hub.",
    )
    include_path: str | None = Field(None, description="Folder of lm-eval task files of your own.")
    num_fewshot: int | dict[str, int] | None = Field(
        None, description="Examples in the prompt, for all tasks or by name; default: each task's own."
    )
    limit: int | None = Field(
        None, ge=1, description="Most questions of a task; of a group, of each of its tasks."
    )
    chat_template: bool = Field(
        False, description="Ask in the model's chat template, examples as turns; off: as plain text."
    )
    backend: Literal["transformers", "vllm"] = Field("transformers", description="What the model runs in.")
    max_length: int | None = Field(
        None, ge=64, description="Tokens of prompt and answer; default: the model's."
    )
    batch_size: int = resources(8, ge=1, description="Questions a forward pass, with `transformers`.")
    num_actors: int = resources(1, ge=1, description="Actors, one model of one task at a time each.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an actor.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs of an actor.")
    gpu_memory_utilization: float = resources(
        0.8, gt=0, lt=1, description="With `vllm`: its share of each GPU."
    )

    def fewshot_of(self, task: str) -> int | None:
        """Examples in the prompt of a task; None: its own number."""
        return self.num_fewshot.get(task) if isinstance(self.num_fewshot, dict) else self.num_fewshot


class MappingConfig(Section):
    """How well distillers map the inputs of held-out MIXTURE rows to a good row."""

    rows: int = Field(0, ge=0, description="Most rows of MIXTURE's test split; 0: the stage is left out.")
    models: list[str] = Field(
        [],
        description="What is compared: folders, Hub names or names of the package. Default: the model that "
        "training begins with, and what sft and grpo make of it.",
    )
    max_prompt_length: int = Field(1024, ge=16, description="Longest prompt, tokens; longer ones count as 0.")
    max_completion_length: int = Field(512, ge=8, description="Most tokens of an answer.")
    repetition_penalty: float = Field(1.0, gt=0, description="As `distill.repetition_penalty`.")
    num_actors: int = resources(1, ge=1, description="Engines of one model at a time.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an engine.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs of an engine.")


class CompareConfig(Section):
    """Answers of two models side by side, judged pairwise by the chat model of `rate`."""

    prompts: str | None = Field(
        None,
        description="Rows whose prompts both models answer, in any layout that `ingest` reads. None: the "
        "stage is left out. Give rows that neither was trained on.",
    )
    rows: int = Field(200, ge=1, description="Most prompts; a sample by hash if there are more.")
    models: list[str] = Field(
        [],
        description="Two models, A and B: folders, Hub names or names of the package. Default: the "
        "fine-tuned model and its base.",
    )
    max_prompt_length: int = Field(
        1024, ge=16, description="Longest prompt, tokens; longer ones are not judged."
    )
    max_completion_length: int = Field(512, ge=8, description="Most tokens of an answer.")
    repetition_penalty: float = Field(1.0, gt=0, description="As `distill.repetition_penalty`.")
    num_actors: int = resources(1, ge=1, description="Engines of one model at a time.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and CPU threads) of an engine.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs of an engine.")

    @field_validator("models")
    @classmethod
    def _two(cls, models: list[str]) -> list[str]:
        if models and len(set(models)) != 2:
            raise ValueError("give two different models, or none")
        return models
