"""Checkpoint, store and restore live Linux workloads."""
