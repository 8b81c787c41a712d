"""WHERE checkpoints are kept: content-addressed, compressed, verified at every read."""
