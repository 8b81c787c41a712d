"""Answers to memory pressure on this host: what is watched, limits, and hooks of other tools."""
