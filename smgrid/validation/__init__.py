"""Comparing soil moisture with a reference: metrics and baselines."""
