"""Checkpoints, the fit in progress, and results of spawned workers."""
