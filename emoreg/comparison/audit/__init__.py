"""The audit: checks that try to show that a training only hid what it was to lower."""
