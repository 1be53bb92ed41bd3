"""Errors and warnings before the first step."""
