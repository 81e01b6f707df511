"""How the final set is chosen."""
