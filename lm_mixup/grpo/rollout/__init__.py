"""vLLM engines in Ray actors that draw completions."""
