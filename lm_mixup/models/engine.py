"""The vLLM engine in the caller's own process: generation, log-probabilities and weight loading.

Prompts and completions are token ids, so the learner trains on exactly the tokens that were sampled. vLLM
reads much of its configuration from environment variables at import: give the hosting Ray actor
`engine_environment(...)` as its runtime environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from lm_mixup.config import ModelConfig

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_CPU_BLOCK_SIZE = 32  # tokens per block of the key-value cache; the minimum for the fast CPU attention
_CPU_BATCHED_TOKENS = 4096  # tokens per forward pass on CPU, during prefill


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        token_ids: The sampled tokens, including the end-of-sequence token.
        logprobs: float32 [T], log π_engine of each token at the sampling temperature.
        text: The decoded text without special tokens.
        finished: False if the completion was truncated at the length limit.
    """

    token_ids: list[int]
    logprobs: np.ndarray
    text: str
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled. Top-p and top-k are off: they would bias log-probabilities.

    A `repetition_penalty` divides (or, below 0, multiplies) the logits of tokens in the prompt or completion
    (CTRL, arXiv 1909.05858, section 4.1); log-probabilities are then no longer the model's own. With a
    `json_schema`, completions conform to it and contain no white space between tokens.
    """

    n: int = 1
    temperature: float = 1.0
    max_tokens: int = 256
    repetition_penalty: float = 1.0
    json_schema: Mapping[str, Any] | None = None


def engine_environment(threads: int) -> dict[str, str]:
    """Environment variables of a process that hosts an engine, with its CPU threads if there is no GPU."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in-process, so that weights can be reloaded
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
        "OMP_NUM_THREADS": str(threads),
        "KMP_BLOCKTIME": "1",  # ms; spinning threads would starve the next user of the cores
        "TOKENIZERS_PARALLELISM": "false",
    }


class Engine:
    """A vLLM engine for one model.

    Args:
        model: A folder or Hub name in Hugging Face format, or a name of the package (`resolve.py`).
        dtype: `float32`, `bfloat16` or `auto`.
        max_model_len: Most tokens of a prompt plus its completion.
        kv_cache_gib: Key-value cache on CPU, GiB.
        gpu_memory_utilization: Share of each GPU's memory, on GPU.
        tensor_parallel_size: GPUs the model is sharded over.
        trust_remote_code: Whether code in the model's repository may run.
        sleep_mode: Whether `sleep` may free the GPU between rollouts.
        weight_transfer: vLLM's backend for weights sent from GPU to GPU: `nccl` or `ipc`.
        revision: Branch, tag or commit of a Hub name.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        max_model_len: int,
        kv_cache_gib: int = 1,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        trust_remote_code: bool = False,
        sleep_mode: bool = False,
        weight_transfer: str | None = None,
        revision: str | None = None,
    ) -> None:
        import torch
        import torch._dynamo.config

        self.on_gpu = torch.cuda.is_available()
        # On CPU vLLM would compile one sampler kernel: five seconds and a C++ compiler, for no speed-up.
        if not self.on_gpu:
            torch._dynamo.config.disable = True
        from vllm import LLM

        from lm_mixup.models.hub import fetch_model

        make_engine: Any = LLM

        self.dtype = dtype
        options: dict[str, Any] = {}
        if tensor_parallel_size > 1:
            # vLLM's workers as child processes. As Ray actors they would need a GPU bundle each, but an
            # engine's GPUs are one bundle.
            options["distributed_executor_backend"] = "mp"
        if self.on_gpu:
            options |= {
                "gpu_memory_utilization": gpu_memory_utilization,
                "enable_sleep_mode": sleep_mode,
                # Otherwise CUDA graphs stay in the memory that the learner needs meanwhile.
                "sleep_mode_offload_cudagraph": sleep_mode,
            }
        else:
            options |= {
                "enforce_eager": True,
                "kv_cache_memory_bytes": kv_cache_gib << 30,
                # A group shares only full blocks of its prompt; each completion recomputes the rest. With
                # vLLM's 128 tokens that takes a fifth of the rollout time.
                "block_size": _CPU_BLOCK_SIZE,
                # A chunked prompt discards a sampled token and rewinds its request's random generator, which
                # CPU generators cannot do: vLLM 0.32 then fails on every seeded request.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(_CPU_BATCHED_TOKENS, max_model_len),
            }
        if weight_transfer is not None:
            options["weight_transfer_config"] = {"backend": weight_transfer}
        self._llm: Any = make_engine(
            model=fetch_model(model, revision),
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=trust_remote_code,
            logprobs_mode="processed_logprobs",  # after temperature scaling, as in the learner
            enable_prefix_caching=True,
            disable_log_stats=True,
            # Otherwise a weak model may fill its reply with white space, which JSON allows between tokens.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            seed=0,
            **options,
        )

    @classmethod
    def from_config(cls, path: str, model: ModelConfig, *, max_model_len: int, **options: Any) -> Engine:
        """An engine with the dtype, revision and trust of the `model` section, as `policy.load_policy`.

        Args:
            path: Folder or Hub name.
            model: The `model` section.
            max_model_len: Most tokens of a prompt plus its completion.
            options: Other arguments of `Engine`.
        """
        from lm_mixup.models.policy import policy_dtype

        return cls(
            path,
            dtype=str(policy_dtype(model)).removeprefix("torch."),
            max_model_len=max_model_len,
            trust_remote_code=model.trust_remote_code,
            revision=model.revision,
            **options,
        )

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Samples `sampling.n` completions of each prompt.

        A prompt's completions depend on its own seed and not on its batch, so work can be split over any
        number of engines, or repeated after a crash, with the same result.

        Args:
            prompts: Token ids, each at most `max_model_len - sampling.max_tokens` long.
            sampling: Sampling parameters.
            seeds: One per prompt.

        Returns:
            The completions of each prompt, in order.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        schema = sampling.json_schema
        structured = StructuredOutputsParams(json=dict(schema)) if schema is not None else None
        params = [
            SamplingParams(
                n=sampling.n,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                repetition_penalty=sampling.repetition_penalty,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,  # done once at the end: token by token it takes a tenth of the time
                seed=seed,
                structured_outputs=structured,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        tokenizer = self._llm.get_tokenizer()
        return [[_completion(choice, tokenizer) for choice in output.outputs] for output in outputs]

    def score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log π of each token given those before it: float32 [T − 1], at temperature 1."""
        return self.score_batch([token_ids])[0]

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """As `score`, for several sequences, each shorter than `max_model_len`."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        requests = [{"prompt_token_ids": list(token_ids)} for token_ids in sequences]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        scores = []
        for output, token_ids in zip(outputs, sequences, strict=True):
            entries = zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
            scores.append(np.array([entry[token].logprob for entry, token in entries], dtype=np.float32))
        return scores

    def apply(self, function: Callable[[torch.nn.Module], T]) -> list[T]:
        """Applies a function from an importable module to the model on each GPU and returns the results."""
        results: list[T] = self._llm.apply_model(function)
        return results

    def works(self) -> bool:
        """Whether the engine still responds; after a CUDA error or the loss of a worker it does not."""
        try:
            self.score([0, 0])
        except Exception:  # noqa: BLE001 - any failure means it does not
            return False
        return True

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replaces the weights by name and resets the prefix cache, which the old weights computed."""
        iterator = iter(weights.items()) if not self.on_gpu else list(weights.items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
        self._llm.reset_prefix_cache()

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Joins the sender's transfer group, after leaving the previous one.

        Args:
            init_info: The fields of the backend's `WeightTransferInitInfo`.
        """
        self._llm.shutdown_weight_transfer_engine()
        self._llm.init_weight_transfer_engine({"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        """Starts a transfer; until `finish_weight_update` the engine has neither old nor new weights."""
        self._llm.start_weight_update()

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Receives the tensors described by `update_info` (the backend's `WeightTransferUpdateInfo`)."""
        self._llm.update_weights({"update_info": dict(update_info)})

    def finish_weight_update(self) -> None:
        """Activates the received weights and resets the prefix cache, which the old weights computed."""
        self._llm.finish_weight_update()
        self._llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Frees the GPU: discards weights and key-value cache, because new weights follow."""
        self._llm.sleep(level=2)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Reallocates GPU memory: first for the weights, after loading them for the key-value cache."""
        self._llm.wake_up(tags=[part])


def _completion(choice: Any, tokenizer: Any) -> Completion:
    token_ids = list(choice.token_ids)
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    logprobs = np.array(choice.logprobs.logprobs, dtype=np.float32)
    return Completion(token_ids, logprobs, text, finished=choice.finish_reason == "stop")
