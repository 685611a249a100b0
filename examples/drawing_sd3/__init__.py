"""A small Stable Diffusion 3 that draws: coloured shapes on plain backgrounds, trained from nothing on a CPU."""
