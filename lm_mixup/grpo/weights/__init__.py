"""How new weights reach the rollout engines, and how that is verified."""
