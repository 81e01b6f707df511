"""A chat model for a whole stage: each actor makes its own, and all share limits and replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_mixup.chat.client import Chat, check_chat, make_chat, usage
from lm_mixup.chat.rate_limits import share_limits
from lm_mixup.chat.response_cache import ReplyLog
from lm_mixup.config import ChatConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import StageDir

TEACHER = "teacher"


@dataclass(frozen=True)
class SharedChat:
    """What the actors of a stage make their chat model from.

    Attributes:
        config: The model.
        out: The stage on whose account it is asked.
        section: Name of the config's section; replies lie in `replies/<section>`.
        limits: The Ray actor of the limits, for a model behind a server.
    """

    config: ChatConfig
    out: StageDir
    section: str
    limits: Any = None

    def make(self) -> Chat:
        """The chat model of one actor."""
        log = ReplyLog(self.out.run, replies_of(self.section), self.out.name)
        return make_chat(self.config, self.config.backend, self.section, log, self.limits)

    def used(self) -> dict[str, float]:
        """What it took in this run directory so far: requests, tokens, cost (`client.usage`)."""
        return usage(ReplyLog(self.out.run, replies_of(self.section)), self.config, self.out.name)

    def metrics(self) -> dict[str, Any]:
        """For the stage's manifest: who was asked, and what it took, under the section's name."""
        named = {f"{self.section}_{name}": value for name, value in self.used().items()}
        return {self.section: self.config.model, **named}


def replies_of(section: str) -> str:
    """The folder of a section's replies in the run directory."""
    return f"replies/{section}"


def share_chat(config: ChatConfig, out: StageDir, section: str) -> SharedChat:
    """Prepares a stage's chat model on the driver: what is wrong with its settings shows at once.

    Raises:
        InputError: The backend lacks a setting, or its key is not in the environment.
    """
    check_chat(config, config.backend, section)
    limits = share_limits(config, out.run, replies_of(section)) if config.backend == "openai" else None
    return SharedChat(config, out, section, limits)


def placement_of(*configs: ChatConfig) -> dict[str, Any]:
    """How actors that ask these models are placed: arguments of `map_parts`.

    Args:
        configs: The models of one actor. One inside vLLM decides, else the first.

    Raises:
        InputError: Two of them are to run inside the same actor.
    """
    local = [config for config in configs if config.backend == "vllm"]
    if len(local) > 1:
        raise InputError(
            "teacher.backend and rate.backend are both vllm, and one actor cannot hold two engines; "
            "put one of the models behind a server (`openai`)"
        )
    lead = (local or configs)[0]
    placed: dict[str, Any] = {"num_actors": lead.num_actors, "num_cpus": lead.num_cpus}
    if local:
        from lm_mixup.distributed.ray_cluster import has_gpu
        from lm_mixup.models.engine import engine_environment

        placed["num_gpus"] = lead.tensor_parallel_size if has_gpu() else 0.0
        placed["runtime_env"] = {"env_vars": engine_environment(max(1, int(lead.num_cpus)))}
    return placed
