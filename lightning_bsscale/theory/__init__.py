"""The theory: numbers in, frozen records out.

Modules in this folder import only the standard library and each other: no tensor, clock, randomness, rank or logger.
Every estimate and every decision can therefore be checked by hand, replayed from a journal, and computed without
torch.
"""
