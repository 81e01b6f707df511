"""Reward components, their combination, and the actors that compute them."""
