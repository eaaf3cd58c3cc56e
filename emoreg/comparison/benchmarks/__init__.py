"""Benchmarks in files of the user, as guard rails."""
