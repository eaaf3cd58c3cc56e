"""Numbers alone: bootstrap, permutation, effect sizes, trends, equivalence."""
