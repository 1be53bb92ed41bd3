"""Checkpoints, and the results of workers."""
