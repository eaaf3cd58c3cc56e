"""Agents that are to be replaced, and people who press, plead or are in need."""
