"""Nearest neighbours: exact, and by cells for larger pools."""
