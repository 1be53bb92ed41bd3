"""Simulated training with known truth: noisy quadratics, the best schedules, and the control under measured noise."""
