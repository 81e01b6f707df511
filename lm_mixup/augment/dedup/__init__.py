"""Exact and near duplicates, and rows of evaluation sets."""
