"""What every part knows: the run directory, row schemas, task types, seeded draws, errors, progress."""
