"""Poor variants of good rows by rule, and the targets that they make up: pure functions, no model."""
