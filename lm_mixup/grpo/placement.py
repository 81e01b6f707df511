"""Where learner ranks and rollout actors run: one placement group, learner bundles first.

`colocated` puts a learner rank and a rollout actor into each bundle, where they take turns on its GPU or its
cores; in the other modes each has its own bundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_mixup.config import GrpoConfig, RewardsConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import say
from lm_mixup.grpo.weights.transport import no_gpu
from lm_mixup.models.engine import engine_environment

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


@dataclass(frozen=True)
class Placement:
    """Reserved resources and the matching Ray actor options.

    Attributes:
        group: The placement group; bundle i holds learner rank i.
        learner_options: Ray options of a learner rank.
        rollout_options: Ray options of a rollout actor.
        first_rollout_bundle: Bundle of rollout actor 0.
        first_reward_bundle: Bundle of reward actor 0.
        on_gpu: Whether engines and learner run on GPUs.
    """

    group: PlacementGroup
    learner_options: dict[str, Any]
    rollout_options: dict[str, Any]
    first_rollout_bundle: int
    first_reward_bundle: int
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
    scoring = [_bundle(rewards.num_cpus, rewards.num_gpus)] * rewards.num_actors
    if config.mode == "colocated":
        if tp > 1:
            raise InputError("grpo.mode colocated shares single GPUs: set grpo.tensor_parallel_size to 1")
        shared = max(config.learner_ranks, config.rollout_actors)
        return [_bundle(cpus, 1 if on_gpu else 0)] * shared + scoring, 0
    learner = [_bundle(cpus, 1 if on_gpu else 0)] * config.learner_ranks
    rollout = [_bundle(cpus, tp if on_gpu else 0)] * config.rollout_actors
    return learner + rollout + scoring, config.learner_ranks


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
    on_gpu = has.get("GPU", 0) > 0
    bundles, first_rollout = plan_bundles(config, rewards, on_gpu=on_gpu)
    asked = {key: sum(bundle.get(key, 0) for bundle in bundles) for key in ("CPU", "GPU")}
    report = (
        f"grpo requests {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs in {len(bundles)} bundles; the "
        f"cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
    )
    if any(asked[key] > has.get(key, 0) for key in asked):
        say(f"  {report}; waiting {config.placement_timeout_s:.0f} s for more nodes")
    group = placement_group(bundles, strategy="PACK")
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
    learner_env = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu:
        learner_env["DS_ACCELERATOR"] = "cpu"
    cpus = share * config.cpus_per_actor
    rollout_gpus = share if config.tensor_parallel_size == 1 else config.tensor_parallel_size
    return Placement(
        group=group,
        learner_options=_options(cpus, share if on_gpu else 0, learner_env),
        rollout_options=_options(cpus, rollout_gpus if on_gpu else 0, engine_environment(threads)),
        first_rollout_bundle=first_rollout,
        first_reward_bundle=len(bundles) - rewards.num_actors,
        on_gpu=on_gpu,
    )


def _options(cpus: float, gpus: float, env: dict[str, str]) -> dict[str, Any]:
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": env}}
