"""Custom rewards: a function by import path, or an HTTP endpoint.

A failed reward is never replaced by a default: a batch ends with one finite number per completion, or with an
error that names the reward and the cause.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import json
import math
import numbers
import operator
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_mixup.chat.openai_server import key_of, retry_after
from lm_mixup.config import CustomReward
from lm_mixup.core.errors import InputError
from lm_mixup.core.redact import redact, url_secrets
from lm_mixup.rewards.batch import RewardBatch
from lm_mixup.rewards.quality import Floats

if TYPE_CHECKING:
    import tenacity

Source = Callable[[RewardBatch], Any]

_SHOWN = 100  # characters of an endpoint's response quoted in an error
_MOST_WAIT_S = 30.0


class _Failed(Exception):
    """An attempt failed and may be retried. `wait_s` is the wait an endpoint asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class CustomRewards:
    """The custom rewards of a config, ready to score, one after another.

    Functions are called outside any event loop, so they may start one. Async functions and endpoints share
    one loop for the lifetime of this object, so a session they keep between calls stays usable.
    """

    def __init__(self, rewards: Mapping[str, CustomReward]) -> None:
        """Imports functions and reads keys.

        Raises:
            InputError: As `check_custom`.
        """
        self._rewards = dict(rewards)
        self._sources = {name: _source(name, reward) for name, reward in rewards.items()}
        self._runner = asyncio.Runner()

    def score(self, batch: RewardBatch) -> dict[str, Floats]:
        """The custom rewards of each completion, float64 [N] each.

        Raises:
            InputError: A reward failed more than `max_retries` times, or did not return one finite number per
                completion.
        """
        return {name: self._score(name, reward, batch) for name, reward in self._rewards.items()}

    def close(self) -> None:
        """Closes the event loop."""
        self._runner.close()

    def _score(self, name: str, reward: CustomReward, batch: RewardBatch) -> Floats:
        """The rewards of a batch from one source, tried `max_retries + 1` times."""
        import tenacity

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Failed),
            wait=_wait,
            stop=tenacity.stop_after_attempt(1 + reward.max_retries),
            reraise=True,
        )
        try:
            return attempts(self._attempt, self._sources[name], reward.timeout_s, batch)
        except _Failed as error:
            source = reward.path or redact(reward.url or "", *url_secrets(reward.url))
            tries = "once" if not reward.max_retries else f"{1 + reward.max_retries} times"
            raise InputError(f"rewards.custom.{name}: {source} {error}; tried {tries}") from error

    def _attempt(self, source: Source, timeout_s: float, batch: RewardBatch) -> Floats:
        try:
            values = source(batch)
            if inspect.isawaitable(values):
                values = self._runner.run(_in_time(values, timeout_s))
        except (_Failed, InputError):
            raise
        except Exception as error:
            raise _Failed(f"raised {_one_line(error)}{_raised_at(error)}") from error
        try:
            return rewards_of(values, len(batch))
        except ValueError as error:
            raise _Failed(str(error)) from None


async def _in_time(values: Awaitable[Any], timeout_s: float) -> Any:
    try:
        async with asyncio.timeout(timeout_s) as limit:  # for the whole response, however slowly it arrives
            return await values
    except TimeoutError:
        if limit.expired():
            raise _Failed(f"did not answer within {timeout_s:g} s") from None
        raise


def check_custom(rewards: Mapping[str, CustomReward]) -> None:
    """Refuses rewards that cannot work, before anything is started.

    Raises:
        InputError: A function cannot be imported, or the environment variable of a key is empty.
    """
    for name, reward in rewards.items():
        _source(name, reward)


def source_digest(name: str, reward: CustomReward) -> str | None:
    """A digest of the source files of a function, part of the stage's fingerprint. None for an endpoint.

    The files are that of the module in the path and, if the function was imported there, its own.

    Raises:
        InputError: The function cannot be imported.
    """
    if reward.path is None:
        return None
    function = load_function(name, reward.path)
    files = [getattr(sys.modules[reward.path.partition(":")[0]], "__file__", None), _file_of(function)]
    texts = [Path(file).read_bytes() for file in dict.fromkeys(files) if file]
    return hashlib.blake2b(b"".join(texts), digest_size=16).hexdigest() if texts else None


def _file_of(function: Source) -> str | None:
    """The source file of a function, or of the class of a callable object; None if it is built in."""
    written: Any = inspect.unwrap(function)
    if not inspect.isroutine(written) and not inspect.isclass(written):
        written = type(written)
    try:
        return inspect.getsourcefile(written)
    except TypeError:
        return None


def load_function(name: str, path: str) -> Source:
    """The function at an import path; modules in the working directory are found too.

    Raises:
        InputError: There is no such module or attribute, or it is not callable.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a user's file must not shadow an installed module
    where = f"rewards.custom.{name}.path {path}"
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"{where}: {module_name} cannot be imported ({_one_line(error)}); searched in {here}, on "
            "PYTHONPATH and among the installed packages"
        ) from error
    try:
        function = operator.attrgetter(attribute)(module)
    except AttributeError:
        raise InputError(f"{where}: {module.__file__} has no {attribute}") from None
    if not callable(function):
        raise InputError(
            f"{where}: is a {type(function).__name__}; name a function (batch) -> list of numbers"
        )
    called: Source = function
    return called


def rewards_of(values: Any, count: int) -> Floats:
    """Converts what a reward returned to an array, if it is one finite number per completion.

    Args:
        values: A list, tuple, NumPy array or tensor.
        count: Completions.

    Returns:
        float64 [count].

    Raises:
        ValueError: It is anything else; the message says what.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Iterable) or isinstance(listed, str | bytes | Mapping):
        raise ValueError(f"returned a {type(values).__name__} instead of a list of numbers")
    listed = list(listed)
    if len(listed) != count:
        raise ValueError(f"returned {len(listed)} rewards for {count} completions")
    for row, value in enumerate(listed):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"returned {value!r:.40} for completion {row}, which is not a number")
        if not _is_finite(value):
            raise ValueError(f"returned {value!r:.40} for completion {row}, which is not finite")
    return np.array([float(value) for value in listed], dtype=np.float64)


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _source(name: str, reward: CustomReward) -> Source:
    return load_function(name, reward.path) if reward.path is not None else _Endpoint(name, reward)


class _Endpoint:
    """An HTTP endpoint: takes a batch as a JSON object, responds with `{"rewards": [...]}`."""

    def __init__(self, name: str, reward: CustomReward) -> None:
        self._section, self._url = f"rewards.custom.{name}", reward.url or ""
        self._name = name
        self._key = key_of(reward, self._section)
        self._client: Any = None

    async def __call__(self, batch: RewardBatch) -> Any:
        """One attempt.

        Raises:
            _Failed: The request may be retried.
            InputError: The endpoint refuses the request.
        """
        import httpx

        if self._client is None:
            headers = {"Content-Type": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._client = httpx.AsyncClient(headers=headers, timeout=None)  # noqa: S113 - `_in_time` has one
        body = json.dumps({"reward": self._name} | asdict(batch))
        try:
            response = await self._client.post(self._url, content=body)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _Failed(self._clean(f"does not respond ({_one_line(error)})")) from None
        status = response.status_code
        if status in (408, 409, 429) or status >= 500:
            raise _Failed(f"responded with HTTP {status}", retry_after(response.headers))
        if not response.is_success:
            raise InputError(
                f"{self._section}: {self._clean(self._url)} refuses the batch (HTTP {status}: "
                f"{self._clean(response.text)!r:.{_SHOWN}}); check its url and api_key_env"
            )
        try:
            return response.json()["rewards"]
        except (ValueError, LookupError, TypeError):
            shown = self._clean(response.text)
            raise _Failed(f'responded with {shown!r:.{_SHOWN}} instead of {{"rewards": [...]}}') from None

    def _clean(self, text: str) -> str:
        return " ".join(redact(text, self._key or "", *url_secrets(self._url)).split())


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: what an endpoint asks for, else exponential backoff."""
    import tenacity

    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Failed) and error.wait_s is not None:
        return min(error.wait_s, _MOST_WAIT_S)
    return float(tenacity.wait_random_exponential(multiplier=0.5, max=_MOST_WAIT_S)(state))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _raised_at(error: Exception) -> str:
    """File and line where the user's code raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
