"""What counts as failure, where that is read from, and its way to the batch."""
