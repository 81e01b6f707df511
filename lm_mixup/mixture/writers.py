"""Who writes MIXTURE: the offline teacher or a chat model, behind one protocol.

`generate` and `degrade` know the protocol alone. A writer rates what it writes with its own judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from lm_mixup.chat.client import Chat
from lm_mixup.chat.judge import Judge, SharedJudge, share_judge
from lm_mixup.chat.shared import TEACHER, SharedChat, placement_of, share_chat
from lm_mixup.config import BuildConfig, RateConfig, TeacherConfig
from lm_mixup.core.run_dir import StageDir
from lm_mixup.distributed.map_parts import PartResult
from lm_mixup.mixture import offline_writer
from lm_mixup.mixture.teacher import samples as teacher_samples
from lm_mixup.mixture.teacher import variants as teacher_variants


class Writer(Protocol):
    """Writes and rates the texts of one part."""

    def samples(self, passages: Sequence[dict[str, Any]], about: Sequence[int], first: int) -> PartResult:
        """High-quality samples: sample `first + i` is about `passages[about[i]]`."""
        ...

    def variants(self, samples: pa.Table) -> PartResult:
        """Poor variants of samples, which together still hold all that each sample tells."""
        ...


class OfflineWriter:
    """Rules over the closed world."""

    def __init__(self, judge: Judge, config: BuildConfig, seed: int) -> None:
        self._judge, self._config, self._seed = judge, config, seed

    def samples(self, passages: Sequence[dict[str, Any]], about: Sequence[int], first: int) -> PartResult:
        """See `Writer`."""
        return offline_writer.write_samples(passages, about, first, self._judge, self._config, self._seed)

    def variants(self, samples: pa.Table) -> PartResult:
        """See `Writer`."""
        return offline_writer.write_variants(samples, self._judge, self._config, self._seed)


class ChatWriter:
    """A chat model, asked once for each sample and for the variants of each sample."""

    def __init__(self, chat: Chat, judge: Judge, config: BuildConfig, seed: int) -> None:
        self._chat, self._judge, self._config, self._seed = chat, judge, config, seed

    def samples(self, passages: Sequence[dict[str, Any]], about: Sequence[int], first: int) -> PartResult:
        """See `Writer`."""
        return teacher_samples.write_samples(
            passages, about, first, self._chat, self._judge, self._config, self._seed
        )

    def variants(self, samples: pa.Table) -> PartResult:
        """See `Writer`."""
        return teacher_variants.write_variants(samples, self._chat, self._judge, self._config, self._seed)


@dataclass(frozen=True)
class SharedWriter:
    """A writer for a stage: each actor makes its own, and all share limits and replies.

    Attributes:
        judge: Rates what is written.
        chat: The chat model that writes; None: the offline teacher does.
        config: The `build` section.
        seed: Of all choices.
    """

    judge: SharedJudge
    chat: SharedChat | None
    config: BuildConfig
    seed: int

    def make(self) -> Writer:
        """The writer of one actor."""
        judge = self.judge.make()
        if self.chat is None:
            return OfflineWriter(judge, self.config, self.seed)
        return ChatWriter(self.chat.make(), judge, self.config, self.seed)

    def placement(self) -> dict[str, Any]:
        """How actors that write are placed: arguments of `map_parts`.

        Raises:
            InputError: Teacher and judge are to run inside the same actor.
        """
        if self.chat is None:
            return self.judge.placement()
        return placement_of(self.chat.config, self.judge.config)

    def metrics(self) -> dict[str, Any]:
        """For the stage's manifest: who rated, who wrote, and what it took so far."""
        return self.judge.metrics() | ({} if self.chat is None else self.chat.metrics())


def share_writer(
    teacher: TeacherConfig, rate: RateConfig, out: StageDir, config: BuildConfig, seed: int
) -> SharedWriter:
    """Prepares a stage's writer on the driver: what is wrong with its settings shows at once.

    The offline teacher fills the facts of one entity into a question and its answer, so its rows are relevant
    by construction: they are rated without embedding them, which would take longer than the rest of `build`.

    Raises:
        InputError: A setting is missing, or its key is not in the environment.
    """
    if teacher.backend == "offline":
        judge = share_judge(rate.model_copy(update={"relevance": False}), out)
        return SharedWriter(judge, None, config, seed)
    return SharedWriter(share_judge(rate, out), share_chat(teacher, out, TEACHER), config, seed)
