"""WHAT a checkpoint is: frozen values, no I/O."""
