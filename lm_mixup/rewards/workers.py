"""Ray actors that score completions: thin shells around the pure functions of this package.

A failing reward is an error, never a default: a failed batch goes to a fresh actor, `max_retries` times, and
then the run stops.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lm_mixup.config import EmbedderConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import StageDir
from lm_mixup.core.run_log import current_place, log, open_from_environment
from lm_mixup.core.schemas import content_id
from lm_mixup.core.task_types import TaskType, answer_of, parse_answer, read_input, to_pair
from lm_mixup.distributed.labels import label
from lm_mixup.rewards.alignment import alignment_reward, cosine
from lm_mixup.rewards.batch import RewardBatch, RewardScores, whole_groups
from lm_mixup.rewards.combine import combine, component_names, weights_of
from lm_mixup.rewards.custom import CustomRewards
from lm_mixup.rewards.faithfulness import Source, measure
from lm_mixup.rewards.format import format_rewards
from lm_mixup.rewards.library import check_library, load_library, require_task_types
from lm_mixup.rewards.quality import Embeddings, Floats, TaskLibrary, score_answers

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

Embed = Callable[[Sequence[str]], Embeddings]


class RewardFailed(RuntimeError):
    """A batch could not be scored, however often it was tried."""


def score_components(
    batch: RewardBatch,
    references: Embeddings,
    embed: Embed,
    libraries: Mapping[TaskType, TaskLibrary],
    config: RewardsConfig,
) -> dict[str, Floats]:
    """The built-in components of each completion.

    Every readable answer is embedded once, for quality and alignment both. Where a completion has no
    readable answer (broken tags, or not the pattern of its task type), quality, alignment and faithfulness
    are 0: there is nothing to score. All four are 0 for a completion that did not finish.

    Args:
        batch: N completions.
        references: Embedded reference answers, L2-normalised, float32 [N, d].
        embed: Texts → L2-normalised float32 [M, d].
        libraries: Rated samples by task type.
        config: Neighbours and alignment.

    Returns:
        `quality`, `alignment`, `format`, `faithfulness`: float64 [N] each.

    Raises:
        InputError: Faithfulness has a weight for a completion whose inputs are not given.
    """
    finished = np.array(batch.finished or [True] * len(batch), dtype=bool)
    answers = [
        answer_of(task_type, text) if ended else None
        for task_type, text, ended in zip(batch.task_types, batch.completions, finished, strict=True)
    ]
    quality, alignment = np.zeros(len(answers)), np.zeros(len(answers))
    readable = np.array([row for row, answer in enumerate(answers) if answer is not None], dtype=np.int64)
    if len(readable):
        embedded = embed([answer for answer in answers if answer is not None])
        alignment[readable] = alignment_reward(
            cosine(embedded, references[readable]), config.alignment, config.alignment_threshold
        )
        kinds = np.array([batch.task_types[row] for row in readable])
        for task_type in dict.fromkeys(batch.task_types[row] for row in readable):
            here = kinds == task_type
            quality[readable[here]] = score_answers(embedded[here], libraries[task_type], config.neighbors)
    return {
        "quality": quality,
        "alignment": alignment,
        "format": format_rewards(batch.task_types, batch.completions) * finished,
        "faithfulness": _faithfulness(batch, answers, config),
    }


def _faithfulness(batch: RewardBatch, answers: Sequence[str | None], config: RewardsConfig) -> Floats:
    """The score of `faithfulness.measure` for each readable answer, float64 [N]."""
    scores = np.zeros(len(answers))
    if not batch.inputs or not all(batch.inputs):
        weighing = [t for t in dict.fromkeys(batch.task_types) if weights_of(t, config)["faithfulness"]]
        if weighing and len(batch):
            raise InputError(
                f"rewards: faithfulness weighs for {', '.join(weighing)}, but completions came without inputs"
            )
        return scores
    for row, (task_type, answer) in enumerate(zip(batch.task_types, answers, strict=True)):
        if answer is not None:
            sources = [Source(*read_input(text)) for text in batch.inputs[row]]
            prompt, completion = to_pair(parse_answer(task_type, answer), "")
            scores[row] = measure(prompt, completion, sources, task_type).score
    return scores


def in_actor(embedder: EmbedderConfig, rewards: RewardsConfig, threads: int) -> EmbedderConfig:
    """The embedder as a reward actor runs it: where the actor is, in the precision that the library has."""
    place = {"num_cpus": threads, "num_gpus": rewards.num_gpus, "dtype": embedder.precision()}
    return embedder.model_copy(update=place)


def _cpus() -> float:
    """CPUs of this process: those it may run on, and no more than its container has."""
    from ray._private.utils import get_num_cpus

    return min(len(os.sched_getaffinity(0)), get_num_cpus(override_docker_cpu_warning=True))


class _RewardActor:
    """One process: an embedder, the libraries and the custom rewards, loaded at the first call."""

    def __init__(
        self,
        library: StageDir,
        rewards: RewardsConfig,
        embedder: EmbedderConfig,
    ) -> None:
        self._library, self._rewards, self._config = library, rewards, embedder
        self._embed: Embed | None = None
        self._libraries: dict[TaskType, TaskLibrary] = {}
        self._custom: CustomRewards | None = None

    def load(self) -> tuple[Embed, CustomRewards]:
        """Loads the embedder, the libraries and the custom rewards, once."""
        if self._custom is None or self._embed is None:
            open_from_environment()
            log("reward actor loads")
            from lm_mixup.models.embedder import Embedder

            # the actor reserves a fraction of a CPU because it works while engine and learner wait for it;
            # then it may use its share of the machine
            threads = max(1, int(_cpus()) // self._rewards.num_actors)
            info = check_library(self._library, self._config)
            model = Embedder(in_actor(self._config, self._rewards, threads))
            if (model.name, model.dimension) != (info.embedder, info.dimension):
                raise InputError(
                    f"rewards: the library was made by {info.embedder} ({info.dimension}-d), but the "
                    f"embedder is {model.name} ({model.dimension}-d); run the stage `library` again"
                )
            self._libraries = load_library(self._library, self._config)
            self._embed = model.embed_whole
            self._custom = CustomRewards(self._rewards.custom)
        return self._embed, self._custom

    def warm_up(self) -> None:
        """Loads ahead of the first call."""
        self.load()

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embeds references."""
        embed, _ = self.load()
        return embed(texts)

    def score(self, batch: RewardBatch, references: Embeddings) -> dict[str, Floats]:
        """All components: `score_components` with what this actor has loaded, and the custom ones."""
        embed, custom = self.load()
        built_in = score_components(batch, references, embed, self._libraries, self._rewards)
        return built_in | custom.score(batch)


class RewardWorkers:
    """A pool of reward actors.

    Batches are cut into chunks of whole groups, from `rewards.batch_size` completions on, whatever the number
    of actors, and results come back in the order of the batch: so the number of actors changes the speed
    alone. Each reference is embedded once in a run, by its content.
    """

    def __init__(
        self,
        library: StageDir,
        rewards: RewardsConfig,
        embedder: EmbedderConfig,
        placement: tuple[PlacementGroup, Sequence[int], float] | None = None,
    ) -> None:
        """Starts the actors; they load in the background.

        Args:
            library: The stage's output.
            rewards: Components, weights and the pool's size.
            embedder: The embedder that made the library.
            placement: Where resources were reserved: the placement group, the bundle of each actor, and the
                GPUs that an actor has there.

        Raises:
            InputError: There is no library, or another embedder made it.
        """
        self._info = check_library(library, embedder)
        self._arguments = (library, rewards, embedder)
        self._config = rewards
        self._placement = placement
        self._references: dict[str, NDArray[np.float32]] = {}
        self._lock = threading.Lock()
        self._actors = [self._start(slot) for slot in range(rewards.num_actors)]

    def score(self, batch: RewardBatch) -> RewardScores:
        """Scores a batch.

        Raises:
            InputError: A task type has no library, or a custom reward failed.
            RewardFailed: A chunk failed `max_retries + 1` times.
        """
        require_task_types(self._info, batch.task_types)
        with self._lock:
            references = self._embed_references(batch.references)
            cuts = whole_groups(batch.groups, self._config.batch_size)
            chunks = [(batch.rows(cut), references[cut]) for cut in cuts]
            results = self._map("score", chunks)
        components = {
            name: np.concatenate([result[name] for result in results]) if results else np.zeros(0)
            for name in component_names(self._config)
        }
        plain = self._config.model_copy(update={"composition": "weighted_sum"})
        total, weighted = (
            combine(components, batch.task_types, batch.groups, config) for config in (self._config, plain)
        )
        return RewardScores(total, components, weighted)

    def shutdown(self) -> None:
        """Ends the actors."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _embed_references(self, texts: Sequence[str]) -> Embeddings:
        keys = [content_id(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._references}
        batches = whole_groups(range(len(new)), self._config.batch_size)
        values = list(new.values())
        embedded = self._map("embed", [(values[batch],) for batch in batches])
        # Copies: a view would keep the whole array that it came in pinned in Ray's object store.
        rows_of_new = (np.array(row) for row in itertools.chain.from_iterable(embedded))
        self._references.update(zip(new, rows_of_new, strict=True))
        rows = [self._references[key] for key in keys]
        return np.stack(rows) if rows else np.zeros((0, self._info.dimension), dtype=np.float32)

    def _start(self, slot: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {"num_cpus": self._config.num_cpus, "num_gpus": self._config.num_gpus}
        if place := current_place():
            options["runtime_env"] = {"env_vars": replace(place, role="reward").environment()}
        if self._placement is not None:
            group, bundles, options["num_gpus"] = self._placement
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=bundles[slot]
            )
        remote: Any = ray.remote(_RewardActor)
        handle = remote.options(name=label("grpo", f"reward-{slot}"), max_restarts=0, **options).remote(
            *self._arguments
        )
        handle.warm_up.remote()
        return handle

    def _map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Runs the calls on whichever actor is free; results in the order of the calls."""
        import ray

        results: list[Any] = [None] * len(calls)
        waiting, failures = deque(range(len(calls))), Counter[int]()
        running: dict[Any, tuple[int, int, float]] = {}  # reference → call, actor, deadline
        idle = list(range(len(self._actors)))
        while waiting or running:
            while waiting and idle:
                call, slot = waiting.popleft(), idle.pop()
                reference = getattr(self._actors[slot], method).remote(*calls[call])
                running[reference] = (call, slot, time.monotonic() + self._config.timeout_s)
            patience = max(0.0, min(deadline for _, _, deadline in running.values()) - time.monotonic())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=patience)
            late = [] if ready else [min(running, key=lambda reference: running[reference][2])]
            for reference in [*ready, *late]:
                call, slot, _ = running.pop(reference)
                failure = self._collect(reference, call, results, late=bool(late))
                idle.append(slot)
                if failure is not None:
                    failures[call] += 1
                    self._retry(slot, failures[call], failure)
                    waiting.appendleft(call)
        return results

    def _collect(self, reference: Any, call: int, results: list[Any], *, late: bool) -> Exception | None:
        """Stores a result, or returns why there is none."""
        import ray

        if late:
            return TimeoutError(
                f"no answer in {self._config.timeout_s:g} s (a reward actor asks for "
                f"{self._config.num_cpus:g} CPUs and {self._config.num_gpus:g} GPUs; "
                f"free now: {ray.available_resources()})"
            )
        try:
            results[call] = ray.get(reference)
        except InputError as error:  # the user's to mend: trying again would not help
            raise InputError(str(getattr(error, "cause", error))) from None
        except ray.exceptions.RayError as error:
            return error
        return None

    def _retry(self, slot: int, failed: int, error: Exception) -> None:
        """Puts a fresh actor in the slot, or gives up."""
        import ray

        if failed > self._config.max_retries:
            cause = getattr(error, "cause", None) or error
            raise RewardFailed(f"a reward batch failed {failed} times; the last time: {cause}") from error
        ray.kill(self._actors[slot])
        self._actors[slot] = self._start(slot)
