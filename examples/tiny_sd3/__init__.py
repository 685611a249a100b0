"""A tiny Stable Diffusion 3 with random weights: every part of a real one, in a few megabytes."""
