"""Where code that a model wrote is run, and how it is tested."""
