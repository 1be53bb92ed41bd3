"""Loggers, log lines and the journal."""
