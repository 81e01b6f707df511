"""The places that load a model: vLLM engine, policy, embedder; and the models that have names."""
