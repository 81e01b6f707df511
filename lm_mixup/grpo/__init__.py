"""Group relative policy optimisation: rollout actors, rewards, learner, weight sync, and the loop."""
