"""Ray: connecting to a cluster, mapping a stage over Parquet parts, running tasks, waiting for actors."""
