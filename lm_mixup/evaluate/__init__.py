"""What a model is worth: benchmarks."""
