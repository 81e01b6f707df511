"""What tests of GRPO train: a model of random weights, a config for it, and made-up episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lm_mixup.config import GrpoConfig
from lm_mixup.demo.nano import create_nano
from lm_mixup.grpo.types import Episode

CONFIG = GrpoConfig(
    max_steps=4,
    num_generations=8,
    prompts_per_step=8,
    max_prompt_length=96,
    max_completion_length=8,
    learning_rate=2e-2,
    beta=0.0,
    micro_tokens=2048,
    cpus_per_actor=0.2,
    placement_timeout_s=60,
    timeout_s=240,
)
SEED = 0


def make_model(folder: Path) -> str:
    texts = [f"What is the melting point of element {i}? It melts at {7 * i} K." for i in range(200)]
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 128}
    create_nano(folder, texts, SEED, vocab_size=512, **sizes)
    return str(folder)


def make_episodes(groups: int) -> list[Episode]:
    """Groups of three completions; lengths differ, and a group in four has no advantage."""
    rng = np.random.default_rng(0)
    episodes = []
    for group in range(groups):
        prompt = rng.integers(10, 250, 5 + 7 * group % 11).tolist()
        for place in range(3):
            length = 1 + (3 * group + place) % 9
            tokens, engine = rng.integers(10, 250, length).tolist(), np.full(length, -6.0, dtype=np.float32)
            episodes.append(Episode(prompt, tokens, engine, float(rng.normal()) * (group % 4 > 0), group))
    return episodes
