"""HOW a checkpoint is written: bytes <-> model, no I/O."""
