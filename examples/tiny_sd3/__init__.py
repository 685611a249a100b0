"""A tiny Stable Diffusion 3: with random weights for tests (make.py), and one that has learned to draw (build.py)."""
