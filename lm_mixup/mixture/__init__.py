"""MIXTURE from passages: generate, degrade, noise, crosstopic, assemble."""
