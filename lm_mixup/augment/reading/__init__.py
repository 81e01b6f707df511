"""Reads pools: files, Hugging Face data sets, rows of any common layout."""
