"""Readings while training: what is computed, kept, logged and said."""
