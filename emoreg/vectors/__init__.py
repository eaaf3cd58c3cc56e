"""What an emotion vector is and where it comes from."""
