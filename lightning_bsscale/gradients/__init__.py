"""Looking at gradients with torch, without Lightning. Nothing in this folder ever changes a gradient."""
