"""Distil clusters of poor instruction rows into dense, correct ones (LM-mixup, arXiv 2510.20449)."""

__version__ = "0.1.0"
