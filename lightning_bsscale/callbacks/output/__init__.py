"""Logged numbers, messages and the journal."""
