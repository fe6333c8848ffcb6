"""Mixtures: their parameters, and what follows from them and from sums."""
