"""Structured chat completion: messages and a pydantic model in, a validated object or a reason out.

No default replaces a missing answer. The transport decides where the model runs: behind an OpenAI-compatible
server (`openai_server`) or in this process (`vllm_engine`). Every reply is stored as it arrives
(`response_cache`), and a request is sent only once per run directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from lm_mixup.chat.rate_limits import Limits, spent
from lm_mixup.chat.read_reply import Unreadable, read_reply
from lm_mixup.chat.response_cache import ReplyLog
from lm_mixup.chat.types import ChatFailure, Message, Reply, Request, escaped
from lm_mixup.config import ChatConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.schemas import content_id

Answer = TypeVar("Answer", bound=BaseModel)

Problem = Callable[[Request, str], str]

_TRIES = 2  # replies to one question, where the first is not valid
_SHOWN = 100  # characters of a reply that its failure quotes


class Transport(Protocol):
    """Where the model runs. It adds each reply to the log as it arrives.

    Attributes:
        identity: Of model and settings: what else decides a reply.
        answered: Whether it is known to have replied under these settings, now or before.
    """

    identity: str
    answered: bool

    def complete(
        self, requests: Sequence[Request], schema: dict[str, Any], problem: Problem
    ) -> list[Reply | ChatFailure]:
        """The replies in order, each held to a JSON schema if the model can be.

        Args:
            problem: What is wrong about a reply; the empty text if nothing is.

        Raises:
            InputError: Too many replies in succession have a problem.
        """
        ...


class Chat:
    """Asks a chat model for objects of a pydantic model.

    Args:
        log: Of the replies; the same that the transport adds to.
    """

    def __init__(self, transport: Transport, log: ReplyLog) -> None:
        self._transport, self._log = transport, log

    def ask(self, conversations: Sequence[list[Message]], answer: type[Answer]) -> list[Answer | ChatFailure]:
        """The answers, in order. Equal conversations are asked once.

        A reply that does not validate is asked for once more, with what is wrong about it. Invalid replies
        from before count, so a killed run does not begin anew.

        Args:
            conversations: Lists of messages (`role`, `content`).
            answer: What the reply must be; with `extra="forbid"` it may hold nothing else.

        Raises:
            InputError: The server refuses all requests, or the budget is spent. Replies are kept.
        """
        schema = answer.model_json_schema()
        keys = [self._key(messages, schema) for messages in conversations]
        wanted = dict(zip(keys, conversations, strict=True))
        outcomes: dict[str, Answer | ChatFailure] = {}
        for round_ in range(_TRIES + 1):
            pending = []
            for key, messages in wanted.items():
                if key in outcomes:
                    continue
                texts = self._log.recall(key)
                self._transport.answered |= bool(texts)
                outcome, request = _next(key, messages, texts, answer)
                if request is not None:
                    pending.append(request)
                else:
                    outcomes[key] = outcome
            hits = len(keys) - len(pending)
            if round_ == 0 and hits:
                self._log.count(cache_hits=hits)
            if not pending:
                break

            def problem(request: Request, text: str) -> str:
                return _problem(text, answer, wanted[request.key])

            replies = self._transport.complete(pending, schema, problem)
            for request, reply in zip(pending, replies, strict=True):
                if isinstance(reply, ChatFailure):
                    outcomes[request.key] = reply
        return [outcomes[key] for key in keys]

    def _key(self, messages: list[Message], schema: dict[str, Any]) -> str:
        return content_id(self._transport.identity, json.dumps(messages), json.dumps(schema, sort_keys=True))


def _next(
    key: str, messages: list[Message], texts: Sequence[str], answer: type[Answer]
) -> tuple[Any, Request | None]:
    """What the replies so far come to: an outcome, or else the request to send."""
    problem = ""
    for text in texts:
        try:
            return read_reply(text, answer, messages), None
        except Unreadable as error:
            problem = str(error)
    if len(texts) >= _TRIES:
        return ChatFailure(f"invalid_reply: {problem}: {texts[-1][:_SHOWN]!r}"), None
    if texts and texts[-1].strip():
        complaint = f"This reply is not valid ({problem}). Reply again, with the JSON object alone."
        messages = [
            *messages,
            {"role": "assistant", "content": escaped(texts[-1][:2000])},
            {"role": "user", "content": complaint},
        ]
    return None, Request(key, len(texts), messages)


def _problem(text: str, answer: type[Answer], messages: Sequence[Message]) -> str:
    try:
        read_reply(text, answer, messages)
    except Unreadable as error:
        return str(error)
    return ""


def make_chat(
    config: ChatConfig, backend: str, section: str, log: ReplyLog, limits: Any | None = None
) -> Chat:
    """The chat model that a config asks for.

    Args:
        section: Name of the config's section, for error messages.
        limits: Shared by all actors (`rate_limits.share_limits`); default: this process's own.

    Raises:
        InputError: A setting is missing, the key is not in the environment, or the model cannot be loaded.
    """
    check_chat(config, backend, section)
    transport: Transport
    if backend == "vllm":
        from lm_mixup.chat.vllm_engine import LocalModel

        transport = LocalModel(config, section, log)
    else:
        from lm_mixup.chat.openai_server import Server

        transport = Server(config, section, log, limits or Limits(config))
    return Chat(transport, log)


def check_chat(config: ChatConfig, backend: str, section: str) -> None:
    """Refuses a config that cannot work, before anything is started.

    Raises:
        InputError: The model or the key is missing.
    """
    if not config.model:
        where = "a model folder or Hub name" if backend == "vllm" else "the model that the server offers"
        raise InputError(f"{section}.model is not set; name {where}")
    if backend == "vllm":
        from lm_mixup.models.resolve import check_model_path

        check_model_path(config.model, f"{section}.model")
    else:
        from lm_mixup.chat.openai_server import key_of

        key_of(config, section)


def usage(log: ReplyLog, config: ChatConfig, stage: str) -> dict[str, float]:
    """What a stage has used in this run directory so far, for its manifest.

    Returns:
        requests (replies and failed attempts), retries, cache_hits, prompt_tokens, completion_tokens; and
        cost, where there are or were prices.
    """
    log.refresh()
    total = log.totals(stage)
    figures: dict[str, float] = {
        "requests": total["replies"] + total["failures"],
        **{name: total[name] for name in ("retries", "cache_hits", "prompt_tokens", "completion_tokens")},
    }
    if config.price_per_million is not None or "cost" in total:
        figures["cost"] = round(spent(config, total), 6)
    return figures
