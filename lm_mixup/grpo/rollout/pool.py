"""Rollout: a pool of vLLM actors that draw groups of completions under the current weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.core.progress import say
from lm_mixup.distributed.ray_wait import deaths, failed_to_start, lost, wait_for
from lm_mixup.grpo.rollout.actor import RolloutActor
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.grpo.weights.transport import InStore, OnDevice, end
from lm_mixup.grpo.weights.verify import Digests, Held, Published, check_digests, check_probe
from lm_mixup.models.engine import Sampling

if TYPE_CHECKING:
    from lm_mixup.grpo.placement import Placement


def deal(positions: Sequence[int], cost: Sequence[int], actors: int) -> list[list[int]]:
    """Splits prompts over actors: the longest first, each to the actor with the least to do.

    Args:
        positions: The prompts to deal.
        cost: Tokens of every prompt, by position.
        actors: How many actors there are.
    """
    shards: list[list[int]] = [[] for _ in range(actors)]
    load = [0] * actors
    for position in sorted(positions, key=lambda p: (-cost[p], p)):
        lightest = load.index(min(load))
        shards[lightest].append(position)
        load[lightest] += cost[position]
    return shards


@dataclass(frozen=True)
class Call:
    """Prompts that were sent to an actor.

    Attributes:
        index: The actor's place in the pool.
        actor: The actor itself: another may stand in its place when the answer is read.
        positions: Which of the pending prompts.
        groups: Ray object reference to its groups.
    """

    index: int
    actor: Any
    positions: list[int]
    groups: Any


@dataclass(frozen=True)
class Pending:
    """Rollouts under way: what `start` returns and `finish` waits for."""

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling
    calls: list[Call]


class RolloutPool:
    """The pool: spreads prompts over actors, and replaces an actor that dies.

    A prompt's completions depend on its seed and the weights alone, so a step in which an actor died ends
    like one in which none did.
    """

    def __init__(
        self,
        model_path: str,
        model: ModelConfig,
        config: GrpoConfig,
        placement: Placement,
    ) -> None:
        self._make_args = (model_path, model, config)
        self._config = config
        self._placement = placement
        self._published: Published | None = None
        self._digests: Digests | None = None
        self._restarts = 0
        self.actors = [self._start(index) for index in range(config.rollout_actors)]

    def _start(self, index: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(
            self._placement.group, placement_group_bundle_index=self._placement.rollout_bundle(index)
        )
        actor_class: Any = ray.remote(RolloutActor)
        return actor_class.options(scheduling_strategy=strategy, **self._placement.rollout_options).remote(
            *self._make_args
        )

    def publish(
        self, version: int, weights: InStore | OnDevice, probe: list[int], expected: np.ndarray
    ) -> float:
        """Sends weights to every engine and verifies that they arrived.

        Args:
            version: The weights' version.
            weights: Where engines get them.
            probe: A token sequence that both sides score.
            expected: float32 [T − 1], the learner's log-probs of the probe.

        Returns:
            The mean |Δ log-prob| of the probe's tokens, of the engine where it is largest.

        Raises:
            WeightSyncError: An engine scores the probe differently from the learner, or does not hold other
                weights than before where others were sent.
            RayError: An engine or a learner rank died while weights were sent from GPU to GPU; all of
                them were ended, and other engines are starting.
        """
        self._published = Published(version, weights, probe, expected)
        if isinstance(weights, OnDevice):
            self._each(lambda actor: [actor.wake.remote()], "wake")
            sent = self._transfer(version, weights)
            held = self._each(lambda actor: [actor.held.remote(probe)], "score the probe")
        else:
            sent = weights.digest
            held = self._each(lambda actor: self._load(actor, weights), f"load weights {version}")
        differences = [self._check(index, each) for index, each in enumerate(held)]
        self._digests = check_digests(version, sent, held, self._digests)
        return max(differences)

    def _each(self, call: Callable[[Any], list[Any]], what: str) -> list[Any]:
        """Has all actors do something at once; one that dies in it is replaced.

        Returns:
            The last result of each actor's calls; where one was replaced, what the new one holds.
        """
        started = [call(actor) for actor in self.actors]
        results: list[Any] = []
        for index, calls in enumerate(started):
            try:
                results.append(self._wait(index, calls, what)[-1])
            except deaths() as error:
                results.append(self._replace(index, error))
        return results

    def _wait(self, index: int, calls: list[Any], what: str) -> list[Any]:
        return wait_for(calls, f"rollout actor {index} to {what}", self._config.timeout_s)

    def _load(self, actor: Any, weights: InStore) -> list[Any]:
        """Calls that bring an actor to the published weights; the last says what it then holds."""
        published = self._current()
        return [
            actor.wake.remote(),
            actor.load_weights.remote(published.version, weights.reference),
            actor.held.remote(published.probe),
        ]

    def _check(self, index: int, held: Held) -> float:
        return check_probe(index, self._current(), held, self._config.verify_tolerance)

    def _current(self) -> Published:
        if self._published is None:
            raise RuntimeError("a rollout actor died before any weights were published")
        return self._published

    def _transfer(self, version: int, weights: OnDevice) -> str:
        """Sends weights from GPU to GPU. If one dies on the way, others may wait for it for ever: all end.

        Returns:
            The digest of what was sent.
        """
        import ray

        members = [*self.actors, *weights.ranks]
        try:
            return weights.sender.send(version, self.actors, weights.ranks)
        except ray.exceptions.RayError:  # of the dead, or of one that missed it
            if not lost(members):
                raise
            say(f"  an engine or a learner rank died while weights {version} were sent; all start again")
            end(members)
            self.actors = [self._start(index) for index in range(len(self.actors))]
            raise

    def _replace(self, index: int, error: Exception) -> Held:
        """Starts another actor in a dead one's place and brings it to the published weights, verified."""
        import ray

        while True:
            self._count(index, error)
            say(f"  rollout actor {index} died; starting another and sending its prompts again")
            ray.kill(self.actors[index])  # it may be alive and out of reach, and hold what the next one needs
            self.actors[index] = self._start(index)
            weights = self._current().weights
            weights = weights.fetch() if isinstance(weights, OnDevice) else weights
            try:
                held: Held = self._wait(index, self._load(self.actors[index], weights), "load weights")[-1]
            except deaths() as again:
                error = again
                continue
            self._check(index, held)
            return held

    def _count(self, index: int, error: Exception) -> None:
        """Counts a death.

        Raises:
            RuntimeError: It is one too many, or the actor could not even start.
        """
        if failed_to_start(error):
            raise RuntimeError(f"rollout actor {index} could not start: {error}") from error
        self._restarts += 1
        if self._restarts > self._config.max_failures:
            raise RuntimeError(
                f"rollout actors died {self._restarts} times (grpo.max_failures="
                f"{self._config.max_failures}); the last one: {error}"
            ) from error

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, validation: bool = False
    ) -> list[Group]:
        """Draws a group for every prompt, in the prompts' order.

        Args:
            prompts: What to complete.
            seeds: One a prompt.
            validation: One completion a prompt, at `grpo.eval_temperature`, instead of a group.
        """
        return self.finish(self.start(prompts, seeds, validation=validation))

    def start(self, prompts: Sequence[Prompt], seeds: Sequence[int], *, validation: bool = False) -> Pending:
        """Sends the prompts out and returns at once; arguments as for `generate`.

        An actor works through its calls in the order they came: rollouts that were started before weights
        are published are drawn from the weights before.
        """
        sampling = Sampling(
            n=1 if validation else self._config.num_generations,
            temperature=self._config.eval_temperature if validation else self._config.temperature,
            max_tokens=self._config.max_completion_length,
        )
        calls = self._send(range(len(prompts)), prompts, seeds, sampling)
        return Pending(prompts, seeds, sampling, calls)

    def finish(self, pending: Pending) -> list[Group]:
        """Waits for rollouts that were started; prompts of an actor that died are sent again."""
        groups: dict[int, Group] = {}
        calls = pending.calls
        while True:
            for call in calls:
                groups |= self._receive(call)
            missing = [position for position in range(len(pending.prompts)) if position not in groups]
            if not missing:
                return [groups[position] for position in range(len(pending.prompts))]
            calls = self._send(missing, pending.prompts, pending.seeds, pending.sampling)

    def _send(
        self, positions: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling
    ) -> list[Call]:
        cost = [len(p.token_ids) + self._config.max_completion_length for p in prompts]
        return [
            Call(
                index,
                actor,
                shard,
                actor.generate.remote([prompts[p] for p in shard], [seeds[p] for p in shard], sampling),
            )
            for index, (actor, shard) in enumerate(
                zip(self.actors, deal(positions, cost, len(self.actors)), strict=True)
            )
        ]

    def _receive(self, call: Call) -> dict[int, Group]:
        """The groups of a call by position; none if its actor died, which is then replaced."""
        try:
            (groups,) = wait_for(
                [call.groups], f"rollout actor {call.index} to generate", self._config.timeout_s
            )
        except deaths() as error:
            if self.actors[call.index] is call.actor:  # several calls of a dead actor replace it once
                self._replace(call.index, error)
            return {}
        return dict(zip(call.positions, groups, strict=True))

    def sleep(self) -> None:
        """Gives the GPUs to the learner, where they are shared."""
        if self._config.mode != "colocated":
            return
        for index, call in enumerate([actor.sleep.remote() for actor in self.actors]):
            try:
                self._wait(index, [call], "sleep")
            except deaths():
                continue  # the dead hold no GPU; one that started now would, and `publish` starts it

    def shutdown(self) -> None:
        """Ends the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)
