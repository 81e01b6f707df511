"""Chat completion by a model inside this process's vLLM engine, its replies held to the JSON schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_mixup.chat.response_cache import ReplyLog
from lm_mixup.chat.types import MOST_INVALID, ChatFailure, Message, Reply, Request
from lm_mixup.config import ChatConfig, ModelConfig
from lm_mixup.core.errors import InputError

_BATCH = 256  # prompts of one engine call; their replies are kept when it returns
_LONGEST = 8192  # tokens of prompt and reply, where the config does not say


class LocalModel:
    """The transport to an engine of this process.

    The hosting actor needs `models.engine.engine_environment` as its runtime environment.

    Args:
        section: Name of the config's section, for error messages.
    """

    def __init__(self, config: ChatConfig, section: str, log: ReplyLog) -> None:
        from lm_mixup.models.engine import Engine
        from lm_mixup.models.policy import load_tokenizer

        path = str(config.model)
        model = ModelConfig(path=path, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        self._tokenizer = load_tokenizer(path, model, key=f"{section}.model")
        self._config, self._section, self._log = config, section, log
        self._max_len = config.max_model_len or _longest(path, config)
        if config.max_tokens >= self._max_len:
            raise InputError(
                f"{section}.max_tokens {config.max_tokens} leaves no room for a prompt: {path} reads "
                f"{self._max_len} tokens, and the reply is among them"
            )
        self._engine = Engine.from_config(
            path,
            model,
            max_model_len=self._max_len,
            kv_cache_gib=config.kv_cache_gib,
            gpu_memory_utilization=config.gpu_memory_utilization,
            tensor_parallel_size=config.tensor_parallel_size,
        )
        self.answered = True
        self._invalid = 0  # replies in succession
        self.identity = identity_of(config, self._engine.dtype, self._max_len)

    def complete(
        self, requests: Sequence[Request], schema: dict[str, Any], problem: Callable[[Request, str], str]
    ) -> list[Reply | ChatFailure]:
        """Generates replies in batches, greedily unless `request` has a temperature; see `Transport`."""
        results: list[Reply | ChatFailure] = []
        for first in range(0, len(requests), _BATCH):
            batch = requests[first : first + _BATCH]
            replies = self._complete_batch(batch, schema)
            for request, reply in zip(batch, replies, strict=True):
                if isinstance(reply, Reply):
                    fault = problem(request, reply.text)
                    if not fault or not request.attempt:  # second replies follow on invalid ones alone
                        self._invalid = self._invalid + 1 if fault else 0
            if self._invalid >= MOST_INVALID:
                raise InputError(
                    f"{self._section}.model {self._config.model}: the last {self._invalid} replies are not "
                    f"what was asked for ({fault}), the last one {reply.text[:100]!r}; choose another"
                )
            results += replies
        return results

    def _complete_batch(
        self, requests: Sequence[Request], schema: dict[str, Any]
    ) -> list[Reply | ChatFailure]:
        from lm_mixup.models.engine import Sampling

        prompts = [self._encode(request.messages) for request in requests]
        room = self._max_len - self._config.max_tokens
        fitting = [number for number, prompt in enumerate(prompts) if len(prompt) <= room]
        results: list[Reply | ChatFailure] = [
            ChatFailure(f"prompt_too_long: {len(prompt)} tokens, {self._section}.max_model_len leaves {room}")
            for prompt in prompts
        ]
        temperature = float(self._config.request.get("temperature", 0.0))
        sampling = Sampling(temperature=temperature, max_tokens=self._config.max_tokens, json_schema=schema)
        # The key is a digest of `request.seed` too: the same draw in whatever batch.
        seeds = [int(requests[i].key[:7], 16) + requests[i].attempt for i in fitting]
        drawn = self._engine.generate([prompts[i] for i in fitting], sampling, seeds)
        for number, (completion,) in zip(fitting, drawn, strict=True):
            reply = Reply(completion.text, len(prompts[number]), len(completion.token_ids))
            tokens = (reply.prompt_tokens, reply.completion_tokens)
            self._log.add(requests[number].key, reply.text, *tokens, cost=0.0)
            results[number] = reply
        return results

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        from lm_mixup.models.policy import defuse

        safe = [message | {"content": defuse(self._tokenizer, message["content"])} for message in messages]
        text = self._tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=False)
        return [int(token) for token in self._tokenizer(str(text), add_special_tokens=False)["input_ids"]]


def identity_of(config: ChatConfig, dtype: str, max_model_len: int) -> str:
    """All that decides a reply beside the question: the weights, their type, lengths, how it is drawn."""
    path = str(config.model)
    settings = [dtype, config.max_tokens, max_model_len, config.request]
    return json.dumps(["vllm", path, _versions(path), *settings], sort_keys=True)


def _longest(path: str, config: ChatConfig) -> int:
    from transformers import AutoConfig

    from lm_mixup.models.resolve import model_folder

    loaded = AutoConfig.from_pretrained(model_folder(path), trust_remote_code=config.trust_remote_code)
    return min(_LONGEST, int(getattr(loaded.get_text_config(), "max_position_embeddings", _LONGEST)))


def _versions(path: str) -> list[Any]:
    """What tells new weights from old, so that they are asked anew.

    Digests of what a named model is made of; names, sizes and times of a folder's files.
    """
    from lm_mixup.models.resolve import model_version

    if named := model_version(path):
        return list(named)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
