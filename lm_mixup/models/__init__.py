"""The only places that load a model: engine (vLLM), policy, embedder and the models that have names."""
