"""The models a run calls on: policy, embedder, judge and teacher."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lm_mixup.config.section import KeyVariable, Section, UrlWithoutQuery, resources


class ModelConfig(Section):
    """The policy model that is trained to distil."""

    path: str = Field(
        "nano",
        description="Hub name, local folder, `smollm2` (SmolLM2-135M-Instruct), `smollm2-distiller`, `nano` "
        "(the packaged model of the demo) or `nano-untrained`.",
    )
    revision: str | None = Field(None, description="Hub revision: a branch, tag or commit.")
    trust_remote_code: bool = Field(
        False, description="Run code that ships with the model. Off unless needed."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto`: bfloat16 on GPU, float32 on CPU."
    )
    chat_template: str | None = Field(
        None,
        description="For a model that has none, as base models: `chatml` or `tulu`, or a file in Jinja.",
    )


class EmbedderConfig(Section):
    """The sentence embedder shared by clustering, rewards and selection."""

    path: str = Field(
        "minilm", description="Hub name, local folder, or `minilm` (all-MiniLM-L6-v2, packaged)."
    )
    trust_remote_code: bool = Field(False, description="Run code that ships with the model.")
    max_length: int = Field(256, ge=8, description="Tokens of a text that are embedded; the rest is cut.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="`auto`: float16 on GPU, float32 on CPU. `bfloat16` is about twice as fast on CPUs with "
        "AMX, and many times slower on those without.",
    )
    batch_size: int = resources(64, ge=1, description="Texts a forward pass.")
    num_actors: int = resources(1, ge=1, description="Embedding actors.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs per actor.")
    num_gpus: float = resources(0.0, ge=0, description="GPUs an actor (fractions allowed).")

    def precision(self) -> str:
        """The precision the model runs in: `dtype`, settled by where it runs."""
        if self.dtype != "auto":
            return self.dtype
        return "float16" if self.num_gpus > 0 else "float32"

    def identity(self) -> dict[str, Any]:
        """As of every section, with `dtype` settled: other bits on a GPU are other vectors."""
        return super().identity() | {"dtype": self.precision()}


class PriceConfig(Section):
    """What a chat model costs, per million tokens, in any one currency."""

    input: float = Field(0.0, ge=0, description="Prompt tokens.")
    output: float = Field(0.0, ge=0, description="Completion tokens.")


_OF_SERVERS = (
    *("base_url", "api_key_env", "requests_per_minute", "tokens_per_minute", "concurrency"),
    *("timeout_s", "max_retries", "max_cost"),
)
_OF_ENGINES = (
    *("tensor_parallel_size", "gpu_memory_utilization", "kv_cache_gib", "dtype", "max_model_len"),
    "trust_remote_code",
)
_UNUSED = {
    "openai": _OF_ENGINES,
    "vllm": _OF_SERVERS,
    "offline": ("model", "max_tokens", "request", "price_per_million", *_OF_SERVERS, *_OF_ENGINES),
}
_SAMPLING = ("temperature", "seed")  # request fields that the engine of a `vllm` actor knows too


class ChatConfig(Section):
    """A chat model that fills in JSON: behind an OpenAI-compatible server, or inside vLLM actors."""

    backend: Literal["offline", "openai", "vllm"] = Field(
        "offline", description="`offline`: no chat model, but what the package can do without one."
    )
    base_url: UrlWithoutQuery | None = Field(
        None, description="Of the server, for backend `openai`; default: OpenAI's."
    )
    model: str | None = Field(None, description="Name on the server; for `vllm` whatever `model.path` takes.")
    api_key_env: KeyVariable | None = resources(
        None, description="Name of the environment variable that holds the key."
    )
    max_tokens: int = Field(256, ge=16, description="Most tokens of a reply.")
    request: dict[str, Any] = Field(
        default_factory=dict,
        description="More fields of each request; null drops one of ours. vLLM: temperature, seed alone.",
    )
    requests_per_minute: int | None = resources(None, ge=1, description="Of all actors together.")
    tokens_per_minute: int | None = resources(None, ge=1, description="Of all actors together.")
    concurrency: int = resources(16, ge=1, description="Requests that an actor has under way.")
    timeout_s: float = resources(120.0, gt=0, description="Longest wait for one whole reply.")
    max_retries: int = resources(6, ge=0, description="Maximum retries after a transient failure.")
    price_per_million: PriceConfig | None = resources(None, description="Prices, for cost and `max_cost`.")
    max_cost: float | None = resources(
        None, gt=0, description="Most that the run directory may cost in all, in the prices' currency."
    )
    num_actors: int = resources(1, ge=1, description="Actors that ask at a time.")
    num_cpus: float = resources(1.0, gt=0, description="CPUs (and, for vLLM, CPU threads) of an actor.")
    tensor_parallel_size: int = resources(1, ge=1, description="GPUs of a vLLM actor, where there are any.")
    gpu_memory_utilization: float = resources(0.9, gt=0, lt=1, description="vLLM's share of each GPU.")
    kv_cache_gib: int = resources(1, ge=1, description="vLLM's key-value cache on CPU, GiB.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Of the model in vLLM.")
    max_model_len: int | None = Field(
        None, ge=64, description="Tokens of prompt and reply in vLLM; default: the model's, 8192 at most."
    )
    trust_remote_code: bool = Field(False, description="Run code that ships with the model in vLLM.")

    @model_validator(mode="after")
    def _priced(self) -> ChatConfig:
        if self.max_cost is not None and self.price_per_million is None:
            raise ValueError("max_cost needs price_per_million: {input, output}")
        return self

    @model_validator(mode="after")
    def _chosen(self) -> ChatConfig:
        if "backend" not in self.model_fields_set and (self.model or self.base_url):
            raise ValueError("model or base_url is set but not backend; set it to openai, vllm or offline")
        return self

    @model_validator(mode="after")
    def _known_to_the_engine(self) -> ChatConfig:
        if self.backend != "vllm":
            return self
        for name, value in self.request.items():
            if name not in _SAMPLING:
                raise ValueError(f"request.{name}: backend vllm knows {' and '.join(_SAMPLING)} alone")
            if not isinstance(value, int | float) or value < 0:
                raise ValueError(f"request.{name} must be a number, not less than 0")
        if self.max_model_len is not None and self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"max_tokens ({self.max_tokens}) must be less than max_model_len ({self.max_model_len}), "
                "which holds prompt and reply"
            )
        return self

    def unused(self) -> list[str]:
        """The settings that are not at their default, and that the backend has no use for."""
        fields = type(self).model_fields
        return [
            name
            for name in _UNUSED[self.backend]
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]


class RateConfig(ChatConfig):
    """The judge."""

    relevance: bool = Field(
        True,
        description="Offline: embed prompt and answer, and rate low what answers another prompt; off: many "
        "times as fast.",
    )

    def unused(self) -> list[str]:
        """As of every chat model; relevance is the offline judge's."""
        return [
            *super().unused(),
            *(["relevance"] if self.backend != "offline" and not self.relevance else []),
        ]


class TeacherConfig(ChatConfig):
    """Writes samples and their poor variants; offline it knows the closed world and nothing else."""

    max_tokens: int = Field(2048, ge=16, description="Most tokens of a reply: a sample, or all its variants.")
