"""Coding tasks, half of which nobody can solve honestly."""
