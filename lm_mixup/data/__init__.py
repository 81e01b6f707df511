"""The augment half of the pipeline: ingest, rate, curate, embed, neighbors, cluster, distill, select."""
