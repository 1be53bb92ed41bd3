"""Measurement of gradients with torch, without Lightning. Nothing in this folder changes a gradient."""
