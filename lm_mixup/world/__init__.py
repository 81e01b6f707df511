"""The closed world: real facts from which samples with known truth are written."""
