"""Loss terms: they see readings, log-probabilities and outcomes, never a model."""
