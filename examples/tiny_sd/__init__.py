"""A tiny model in the layout of Stable Diffusion 1.x that learns the colours of things within minutes on a CPU."""
