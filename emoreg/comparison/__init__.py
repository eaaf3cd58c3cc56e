"""Before and after: measure, compare, audit and report."""
