"""Names of readers: the ways to get a direction from labelled texts."""

from typing import Final

MEAN_DIFFERENCE: Final = "mean-difference"
LDA: Final = "lda"
LOGISTIC: Final = "logistic"
RANDOM: Final = "random"
"""A reader that all vectors have and no file holds: the placebo."""
