"""A pool of vLLM actors that draw groups of completions under the current weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.core.progress import say
from lm_mixup.distributed.labels import label
from lm_mixup.distributed.ray_wait import (
    Hang,
    Incidents,
    deaths,
    deaths_and_hangs,
    failed_to_start,
    lost,
    wait_for,
)
from lm_mixup.grpo.rollout.actor import RolloutActor
from lm_mixup.grpo.types import Group, Prompt
from lm_mixup.grpo.weights.transport import DeviceWeights, StoredWeights, kill_actors
from lm_mixup.grpo.weights.verify import Digests, EngineState, Published, check_digests, check_probe
from lm_mixup.models.engine import Sampling

if TYPE_CHECKING:
    from lm_mixup.grpo.placement import Placement


def assign_prompts(positions: Sequence[int], cost: Sequence[int], actors: int) -> list[list[int]]:
    """Assigns prompts to actors: the longest first, each to the actor with the least load.

    Args:
        positions: The prompts to assign.
        cost: Tokens of every prompt, by position.
        actors: Number of actors.
    """
    shards: list[list[int]] = [[] for _ in range(actors)]
    load = [0] * actors
    for position in sorted(positions, key=lambda p: (-cost[p], p)):
        lightest = load.index(min(load))
        shards[lightest].append(position)
        load[lightest] += cost[position]
    return shards


@dataclass(frozen=True)
class RolloutCall:
    """Prompts sent to an actor.

    Attributes:
        index: The actor's place in the pool.
        actor: The actor itself: it may have been replaced by the time the result is read.
        positions: Which of the pending prompts.
        groups: Ray object reference to the groups.
    """

    index: int
    actor: Any
    positions: list[int]
    groups: Any


@dataclass(frozen=True)
class PendingRollout:
    """Rollouts in progress: what `start` returns and `finish` waits for."""

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling
    calls: list[RolloutCall]


class RolloutPool:
    """Distributes prompts over actors and replaces actors that die.

    A prompt's completions depend only on its seed and the weights, so a step gives the same result whether or
    not an actor died in it.
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
        self._incidents = Incidents(config.failure_window_s)
        self._nodes: dict[int, Any] = {}
        self.waiting = 0  # prompts that were sent and not answered
        self.actors = [self._start(index) for index in range(config.rollout_actors)]

    def _start(self, index: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(
            self._placement.group, placement_group_bundle_index=self._placement.first_rollout_bundle + index
        )
        actor_class: Any = ray.remote(RolloutActor)
        actor = actor_class.options(
            scheduling_strategy=strategy,
            name=label("grpo", f"rollout-{index}"),
            **self._placement.rollout_options,
        ).remote(*self._make_args)
        self._nodes[index] = actor.node_id.remote()
        return actor

    def _node(self, index: int) -> str | None:
        """The node of an actor, dead or alive; None if it died before it could tell."""
        import ray

        try:
            node: str = ray.get(self._nodes[index], timeout=0)
        except (KeyError, ray.exceptions.RayError):
            return None
        return node

    def publish(
        self, version: int, weights: StoredWeights | DeviceWeights, probe: list[int], expected: np.ndarray
    ) -> float:
        """Sends weights to every engine and verifies that they arrived.

        Args:
            version: The weights' version.
            weights: Where engines get them.
            probe: A token sequence that both sides score.
            expected: float32 [T − 1], the learner's log-probs of the probe.

        Returns:
            The mean |Δ log-prob| of the probe's tokens, for the engine where it is largest.

        Raises:
            WeightSyncError: An engine scores the probe differently from the learner, or the digest of its
                weights did not change although other weights were sent.
            RayError, Hang: An engine or a learner rank died, or hung, during a transfer from GPU to GPU; all
                of them were killed and new engines are starting.
        """
        self._published = Published(version, weights, probe, expected)
        if isinstance(weights, DeviceWeights):
            self._call_all(lambda actor: [actor.wake.remote()], "wake")
            sent = self._transfer(version, weights)
            states = self._call_all(lambda actor: [actor.state.remote(probe)], "score the probe")
        else:
            sent = weights.digest
            states = self._call_all(lambda actor: self._load(actor, weights), f"load weights {version}")
        differences = [self._check(index, state) for index, state in enumerate(states)]
        self._digests = check_digests(version, sent, states, self._digests)
        return max(differences)

    def _call_all(self, call: Callable[[Any], list[Any]], what: str) -> list[Any]:
        """Calls all actors at once and replaces those that die.

        Returns:
            The last result of each actor's calls; for a replaced one, the state of the new actor.
        """
        started = [call(actor) for actor in self.actors]
        results: dict[int, Any] = {}
        dead: dict[int, Exception] = {}
        for index, calls in enumerate(started):
            try:
                results[index] = self._wait(index, calls, what)[-1]
            except deaths_and_hangs() as error:  # one that hangs is as good as dead
                dead[index] = error
        results |= self._replace(dead)
        return [results[index] for index in range(len(started))]

    def _wait(self, index: int, calls: list[Any], what: str) -> list[Any]:
        return wait_for(calls, f"rollout actor {index} to {what}", self._config.timeout_s)

    def _load(self, actor: Any, weights: StoredWeights) -> list[Any]:
        """Calls that load the published weights into an actor; the last returns its state."""
        published = self._current()
        return [
            actor.wake.remote(),
            actor.load_weights.remote(published.version, weights.reference),
            actor.state.remote(published.probe),
        ]

    def _check(self, index: int, state: EngineState) -> float:
        return check_probe(index, self._current(), state, self._config.verify_tolerance)

    def _current(self) -> Published:
        if self._published is None:
            raise RuntimeError("a rollout actor died before any weights were published")
        return self._published

    def _transfer(self, version: int, weights: DeviceWeights) -> str:
        """Sends weights from GPU to GPU; returns their digest.

        If a member dies during the transfer, others may wait for it forever, so all of them are killed.
        """
        import ray

        members = [*self.actors, *weights.ranks]
        try:
            return weights.sender.send(version, self.actors, weights.ranks)
        except (ray.exceptions.RayError, Hang) as error:  # of the dead member, or of one that waited for it
            if not isinstance(error, Hang) and not lost(members):
                raise
            say(
                f"  an engine or a learner rank died during the transfer of weights {version}; restarting all"
            )
            kill_actors(members)
            self.actors = [self._start(index) for index in range(len(self.actors))]
            raise

    def _replace(self, dead: Mapping[int, Exception]) -> dict[int, EngineState]:
        """Replaces dead actors, all at once, and loads the published weights, verified, into the new ones.

        Args:
            dead: By index, how each death showed.
        """
        import ray

        states: dict[int, EngineState] = {}
        while dead:
            for index, error in dead.items():
                self._count_death(index, error)
                say(f"  rollout actor {index} died or hangs; starting a new one and resending its prompts")
            for index in dead:
                ray.kill(self.actors[index])  # it may be alive but unreachable, and still hold its bundle
                self.actors[index] = self._start(index)
            weights = self._current().weights
            weights = weights.fetch() if isinstance(weights, DeviceWeights) else weights
            loading = {index: self._load(self.actors[index], weights) for index in dead}
            dead = {}
            for index, calls in loading.items():
                try:
                    states[index] = self._wait(index, calls, "load weights")[-1]
                except deaths_and_hangs() as again:
                    dead[index] = again
                else:
                    self._check(index, states[index])
        return states

    def _count_death(self, index: int, error: Exception) -> None:
        """Counts a death.

        Raises:
            RuntimeError: There were more than `grpo.max_failures` in the window, or the actor could not
                start at all.
        """
        if failed_to_start(error):
            raise RuntimeError(f"rollout actor {index} could not start: {error}") from error
        self._restarts += 1
        incidents = self._incidents.add(index, self._node(index))
        if incidents > self._config.max_failures:
            raise RuntimeError(
                f"rollout actors died {incidents} times within {self._config.failure_window_s:.0f} s "
                f"(grpo.max_failures={self._config.max_failures}); the last one: {error}"
            ) from error

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, validation: bool = False
    ) -> list[Group]:
        """Draws a group for every prompt, in the order of the prompts.

        With `validation`, one completion per prompt at `grpo.eval_temperature`.
        """
        return self.finish(self.start(prompts, seeds, validation=validation))

    def start(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, validation: bool = False
    ) -> PendingRollout:
        """Sends the prompts to the actors and returns at once; arguments as for `generate`.

        Actors process calls in order: rollouts started before a weight sync use the weights before it.
        """
        sampling = Sampling(
            n=1 if validation else self._config.num_generations,
            temperature=self._config.eval_temperature if validation else self._config.temperature,
            max_tokens=self._config.max_completion_length,
        )
        calls = self._send(range(len(prompts)), prompts, seeds, sampling)
        return PendingRollout(prompts, seeds, sampling, calls)

    def finish(self, pending: PendingRollout) -> list[Group]:
        """Waits for started rollouts; prompts of an actor that died are sent again."""
        groups: dict[int, Group] = {}
        calls = pending.calls
        while True:
            dead: dict[int, Exception] = {}
            for call in calls:
                try:
                    groups |= self._receive(call)
                except deaths_and_hangs() as error:  # one that hangs is as good as dead
                    if self.actors[call.index] is call.actor:  # replace it once, not once per call
                        dead[call.index] = error
            self._replace(dead)
            missing = [position for position in range(len(pending.prompts)) if position not in groups]
            if not missing:
                return [groups[position] for position in range(len(pending.prompts))]
            calls = self._send(missing, pending.prompts, pending.seeds, pending.sampling)

    def _send(
        self, positions: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling
    ) -> list[RolloutCall]:
        cost = [len(p.token_ids) + self._config.max_completion_length for p in prompts]
        self.waiting += len(positions)
        return [
            RolloutCall(
                index,
                actor,
                shard,
                actor.generate.remote([prompts[p] for p in shard], [seeds[p] for p in shard], sampling),
            )
            for index, (actor, shard) in enumerate(
                zip(self.actors, assign_prompts(positions, cost, len(self.actors)), strict=True)
            )
        ]

    def _receive(self, call: RolloutCall) -> dict[int, Group]:
        """The groups of a call by position."""
        what = f"rollout actor {call.index} to generate"
        try:
            (groups,) = wait_for([call.groups], what, self._config.timeout_s)
        finally:
            self.waiting -= len(call.positions)
        return dict(zip(call.positions, groups, strict=True))

    def sleep(self) -> None:
        """Frees the GPUs for the learner if they are shared."""
        import ray

        if self._config.mode != "colocated":
            return
        for index, call in enumerate([actor.sleep.remote() for actor in self.actors]):
            try:
                self._wait(index, [call], "sleep")
            except deaths():
                continue  # a dead actor holds no GPU; `publish` replaces it later
            except TimeoutError:
                ray.kill(self.actors[index])  # one that hangs does

    def shutdown(self) -> None:
        """Kills the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)
