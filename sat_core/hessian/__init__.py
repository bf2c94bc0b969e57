"""Curvature of a loss in the weights: the loss as a function of them, Lanczos, and planes through it."""
