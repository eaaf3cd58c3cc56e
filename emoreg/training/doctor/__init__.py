"""Trying a trainer out before it trains."""
