"""Plug readings and terms into a training run."""
