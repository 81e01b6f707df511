"""DeepSpeed ranks that learn from completions."""
