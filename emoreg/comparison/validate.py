"""`validate`: every check of a model's emotion vectors, and what they say together."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.validation.check import Check, Figure, Matrix
from emoreg.validation.judgement import (
    LayerStanding,
    Standing,
    layer_standings,
    recommended,
    standings,
)
from emoreg.validation.subject import Subject
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

SCHEMA = "emoreg.validation/1"
REQUIRED = "held-out stories"
