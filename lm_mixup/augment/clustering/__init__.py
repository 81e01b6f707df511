"""Clusters under size bounds."""
