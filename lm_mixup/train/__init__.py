"""Supervised fine-tuning on Ray Train and DeepSpeed."""
