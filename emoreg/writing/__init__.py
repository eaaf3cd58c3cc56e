"""Writing a corpus with the user's own model, as the paper did."""
