"""The only places that load a model: embedder, judge, teacher, engine (vLLM) and policy."""
