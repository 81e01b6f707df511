"""The places that load a model: vLLM engine, policy, embedder."""
