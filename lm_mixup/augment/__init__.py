"""The stages of `augment`, one module per stage: a pool becomes a training set."""
