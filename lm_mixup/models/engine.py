"""The vLLM engine in its caller's own process: generation, log-probabilities and weight loading by token ids.

Prompts go in and completions come out as token ids, so the learner trains on exactly the tokens that were
sampled. vLLM reads much of its set-up from environment variables when it is imported: give the hosting Ray
actor `engine_environment(...)` as its runtime environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_CPU_BLOCK_SIZE = 32  # tokens of the key-value cache; the least that its fast attention takes
_CPU_BATCHED_TOKENS = 4096  # of one forward pass on CPU, when prompts are read


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        token_ids: The sampled tokens, the end-of-sequence token included.
        logprobs: float32 [T], log π_engine of each token at the sampling temperature.
        text: The decoded text, special tokens left out.
        finished: False if the completion was cut at the length limit.
    """

    token_ids: list[int]
    logprobs: np.ndarray
    text: str
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Top-p and top-k are off: they would bias log-probabilities.

    A `repetition_penalty` divides (or, below 0, multiplies) the logits of tokens that the prompt or the
    completion holds (CTRL, arXiv 1909.05858, section 4.1), and log-probabilities are then no longer the
    model's own. With a `json_schema`, completions are held to it, written without white space.
    """

    n: int = 1
    temperature: float = 1.0
    max_tokens: int = 256
    repetition_penalty: float = 1.0
    json_schema: Mapping[str, Any] | None = None


def engine_environment(threads: int) -> dict[str, str]:
    """Environment variables of a process that hosts an engine.

    Args:
        threads: CPU threads of the engine, when it runs without a GPU.
    """
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in-process: weights can be reloaded
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
        "OMP_NUM_THREADS": str(threads),
        "KMP_BLOCKTIME": "1",  # ms; spinning threads would starve whoever has the cores next
        "TOKENIZERS_PARALLELISM": "false",
    }


class Engine:
    """A vLLM engine for one model.

    Args:
        model: A folder or Hub name in Hugging Face format, or a name of the package (`resolve.py`).
        dtype: `float32`, `bfloat16` or `auto`.
        max_model_len: Most tokens of a prompt and its completion together.
        kv_cache_gib: Key-value cache on CPU, GiB.
        gpu_memory_utilization: Share of each GPU's memory, on GPU.
        tensor_parallel_size: GPUs the model is split over.
        trust_remote_code: Whether code that ships with the model may run.
        sleep_mode: Whether `sleep` may free the GPU between rollouts.
        weight_transfer: vLLM's backend for weights that come from GPU to GPU: `nccl` or `ipc`.
        revision: Of a Hub name: a branch, tag or commit.
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
        # On CPU vLLM compiles one kernel, of its sampler: five seconds and a C++ compiler, for no speed.
        if not self.on_gpu:
            torch._dynamo.config.disable = True
        from vllm import LLM

        from lm_mixup.models.resolve import model_folder

        make_engine: Any = LLM

        self._max_model_len = max_model_len
        options: dict[str, Any] = {}
        if tensor_parallel_size > 1:
            # vLLM's workers are this process's children. Through Ray they would need a GPU bundle each, where
            # an engine's GPUs are one bundle.
            options["distributed_executor_backend"] = "mp"
        if self.on_gpu:
            options |= {
                "gpu_memory_utilization": gpu_memory_utilization,
                "enable_sleep_mode": sleep_mode,
            }
        else:
            options |= {
                "enforce_eager": True,
                "kv_cache_memory_bytes": kv_cache_gib << 30,
                # A group shares whole blocks of its prompt; each completion computes what is left over again.
                # With vLLM's 128 tokens that is a fifth of a rollout's time.
                "block_size": _CPU_BLOCK_SIZE,
                # A prompt cut in two throws a sampled token away and rewinds its request's random generator,
                # which CPU generators cannot do: vLLM 0.32 then fails on every seeded request.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(_CPU_BATCHED_TOKENS, max_model_len),
            }
        if weight_transfer is not None:
            options["weight_transfer_config"] = {"backend": weight_transfer}
        self._llm: Any = make_engine(
            model=model_folder(model),
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=trust_remote_code,
            logprobs_mode="processed_logprobs",  # after the temperature: what the learner computes too
            enable_prefix_caching=True,
            disable_log_stats=True,
            # Without this a weak model may fill its reply with blanks, which JSON allows between any tokens.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            seed=0,
            **options,
        )

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Draws `sampling.n` completions of each prompt.

        A prompt's completions depend on its own seed alone and not on the batch it is in, so work can be
        split over any number of engines, or done again after a crash, with the same result.

        Args:
            prompts: Token ids, each at most `max_model_len - sampling.max_tokens` long.
            sampling: How to draw.
            seeds: One a prompt.

        Returns:
            For each prompt its completions, in order.
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
        """As `score`, for several sequences; each less than `max_model_len` long."""
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
        """What a function, of a module that workers can import, makes of the model on each of its GPUs."""
        results: list[T] = self._llm.apply_model(function)
        return results

    def works(self) -> bool:
        """Whether it answers at all: after a CUDA error, or without one of its workers, it does not."""
        try:
            self.score([0, 0])
        except Exception:  # noqa: BLE001 - asked is whether there is one, not which
            return False
        return True

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replaces the weights by name and drops every cached prefix, which the old weights computed."""
        iterator = iter(weights.items()) if not self.on_gpu else list(weights.items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
        self._llm.reset_prefix_cache()

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Joins the sender of weights; a group of which this engine was part before is left.

        Args:
            init_info: The fields of the backend's `WeightTransferInitInfo`.
        """
        self._llm.shutdown_weight_transfer_engine()
        self._llm.init_weight_transfer_engine({"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        """Makes ready for weights. Until `finish_weight_update` the engine holds neither old nor new ones."""
        self._llm.start_weight_update()

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Receives the tensors that `update_info` (the backend's `WeightTransferUpdateInfo`) tells of."""
        self._llm.update_weights({"update_info": dict(update_info)})

    def finish_weight_update(self) -> None:
        """Takes the weights into use and drops every cached prefix, which the old weights computed."""
        self._llm.finish_weight_update()
        self._llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Frees the GPU: weights and key-value cache are dropped, since other weights come after it."""
        self._llm.sleep(level=2)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Takes a part of the GPU again: room for weights, and once they are there, the key-value cache."""
        self._llm.wake_up(tags=[part])


def _completion(choice: Any, tokenizer: Any) -> Completion:
    token_ids = list(choice.token_ids)
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    logprobs = np.array(choice.logprobs.logprobs, dtype=np.float32)
    return Completion(token_ids, logprobs, text, finished=choice.finish_reason == "stop")
