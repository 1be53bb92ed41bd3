"""The theory: numbers in, frozen records out.

Modules in this folder import the standard library and each other, nothing else: no tensor, clock, randomness,
rank or logger. So every estimate and every decision can be checked by hand, replayed from a journal, and
computed on a machine without torch.
"""
