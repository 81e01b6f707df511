"""The closed world of facts, whose every row can be checked, and the demonstration model."""
