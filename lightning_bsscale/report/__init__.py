"""A run as one self-contained page, drawn from its journal alone: without torch, matplotlib or a network."""
