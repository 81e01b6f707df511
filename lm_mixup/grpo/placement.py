"""Where learner ranks and rollout actors run: one placement group, learner bundles first.

`colocated` puts a learner rank and a rollout actor into each bundle, where they take turns on its GPU or its
cores, and reward actors too if they use GPUs; in the other modes each has its own bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.core.run_log import current_place
from lm_mixup.distributed.gpus import check_gpu_nodes
from lm_mixup.distributed.labels import label
from lm_mixup.distributed.ray_cluster import gpus_of_nodes, has_gpu
from lm_mixup.grpo.weights.transport import no_gpu
from lm_mixup.models.engine import engine_environment

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

_REWARDS_GPU = 0.1  # of a GPU that rewards share with learner and engine, which have 0.45 each


@dataclass(frozen=True)
class Placement:
    """Reserved resources and the matching Ray actor options.

    Attributes:
        group: The placement group; bundle i holds learner rank i.
        learner_options: Ray options of a learner rank.
        rollout_options: Ray options of a rollout actor.
        first_rollout_bundle: Bundle of rollout actor 0.
        reward_bundles: Bundle of each reward actor.
        reward_gpus: GPUs that a reward actor reserves in it.
        on_gpu: Whether engines and learner run on GPUs.
    """

    group: PlacementGroup
    learner_options: dict[str, Any]
    rollout_options: dict[str, Any]
    first_rollout_bundle: int
    reward_bundles: list[int]
    reward_gpus: float
    on_gpu: bool = False

    def release(self) -> None:
        """Releases the resources."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.group)


def plan_bundles(
    config: GrpoConfig, rewards: RewardsConfig, *, on_gpu: bool
) -> tuple[list[dict[str, float]], int]:
    """The bundles to reserve, learner first and rewards last, and the index of rollout actor 0's bundle.

    Raises:
        InputError: The mode does not fit these numbers, or the weight transport needs a GPU.
    """
    if config.weight_transport != "object_store" and not on_gpu:
        raise InputError(no_gpu(config))
    cpus, tp = config.cpus_per_actor, config.tensor_parallel_size
    if config.mode == "colocated":
        if tp > 1:
            raise InputError("grpo.mode colocated shares single GPUs: set grpo.tensor_parallel_size to 1")
        shared = max(config.learner_ranks, config.rollout_actors)
        if rewards_share(config, rewards, on_gpu=on_gpu):
            most = -(-rewards.num_actors // shared)
            return [_bundle(cpus + most * rewards.num_cpus, 1)] * shared, 0
        return [_bundle(cpus, 1 if on_gpu else 0)] * shared + [
            _bundle(rewards.num_cpus, 0)
        ] * rewards.num_actors, 0
    scoring = [_bundle(rewards.num_cpus, rewards.num_gpus if on_gpu else 0)] * rewards.num_actors
    learner = [_bundle(cpus, 1 if on_gpu else 0)] * config.learner_ranks
    rollout = [_bundle(cpus, tp if on_gpu else 0)] * config.rollout_actors
    return learner + rollout + scoring, config.learner_ranks


def rewards_share(config: GrpoConfig, rewards: RewardsConfig, *, on_gpu: bool) -> bool:
    """Whether reward actors share the GPUs of learner and engines: a full machine has no others."""
    return on_gpu and config.mode == "colocated" and rewards.num_gpus > 0


def reward_bundles(
    config: GrpoConfig, rewards: RewardsConfig, bundles: int, *, on_gpu: bool
) -> tuple[list[int], float]:
    """The bundle of each reward actor, of so many bundles in all, and the GPUs that it reserves."""
    actors = rewards.num_actors
    if rewards_share(config, rewards, on_gpu=on_gpu):
        return [actor % bundles for actor in range(actors)], _REWARDS_GPU / -(-actors // bundles)
    return list(range(bundles - actors, bundles)), rewards.num_gpus if on_gpu else 0.0


def check_fits_a_node(config: GrpoConfig, gpus_of_nodes: Sequence[float]) -> None:
    """Refuses an engine that no node has the GPUs for: waiting for more nodes of the kind would not help.

    Args:
        gpus_of_nodes: GPUs of each node, those included that the autoscaler may start.

    Raises:
        InputError: The engine's GPUs are one bundle, which lies on one node.
    """
    largest = max(gpus_of_nodes, default=0.0)
    if config.tensor_parallel_size > largest:
        raise InputError(
            f"grpo.tensor_parallel_size {config.tensor_parallel_size} needs as many GPUs on a node, and the "
            f"largest node has {largest:g}; lower it to {max(1, int(largest))} or less"
        )


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": float(gpus)} if gpus else {"CPU": cpus}


def reserve(config: GrpoConfig, rewards: RewardsConfig) -> Placement:
    """Reserves the bundles, waiting at most `grpo.placement_timeout_s`.

    Raises:
        InputError: The bundles were not available in time; the message states what was requested and what
            the cluster has.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    has = ray.cluster_resources()
    on_gpu = has_gpu()
    bundles, first_rollout = plan_bundles(config, rewards, on_gpu=on_gpu)
    if on_gpu:
        check_fits_a_node(config, gpus_of_nodes())
        check_gpu_nodes()
    asked = {key: sum(bundle.get(key, 0) for bundle in bundles) for key in ("CPU", "GPU")}
    report = (
        f"grpo requests {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs in {len(bundles)} bundles; the "
        f"cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
    )
    if any(asked[key] > has.get(key, 0) for key in asked):
        say(f"  {report}; waiting {config.placement_timeout_s:.0f} s for more nodes")
    group = placement_group(bundles, strategy="PACK", name=label("grpo", "placement"))
    if not group.wait(timeout_seconds=config.placement_timeout_s):
        free = ray.available_resources()
        remove_placement_group(group)
        raise InputError(
            f"{report}, of which {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free; "
            "lower grpo.learner_ranks, grpo.rollout_actors or grpo.cpus_per_actor, or add nodes"
        )
    # As many threads as cores reserved: an OpenMP team larger than its cores runs many times slower.
    threads = max(1, int(config.cpus_per_actor))
    share = 0.5 if first_rollout == 0 else 1.0
    gpu_share = (1 - _REWARDS_GPU) / 2 if rewards_share(config, rewards, on_gpu=on_gpu) else share
    reward_places, reward_gpus = reward_bundles(config, rewards, len(bundles), on_gpu=on_gpu)
    learner_env = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu:
        learner_env["DS_ACCELERATOR"] = "cpu"
    cpus = share * config.cpus_per_actor
    rollout_gpus = gpu_share if config.tensor_parallel_size == 1 else config.tensor_parallel_size
    return Placement(
        group=group,
        learner_options=_options(cpus, gpu_share if on_gpu else 0, learner_env, "learner"),
        rollout_options=_options(cpus, rollout_gpus if on_gpu else 0, engine_environment(threads), "rollout"),
        first_rollout_bundle=first_rollout,
        reward_bundles=reward_places,
        reward_gpus=reward_gpus,
        on_gpu=on_gpu,
    )


def _options(cpus: float, gpus: float, env: dict[str, str], role: str) -> dict[str, Any]:
    if place := current_place():
        env |= replace(place, role=role).environment()
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": env}}
