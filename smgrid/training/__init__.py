"""Samples streamed from a cube, and the loops that train an ensemble on them."""
