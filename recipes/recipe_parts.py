"""What the recipes share: flags, the model with its reference, the command line.

A recipe that is copied needs this file beside it.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from trl import TrlParser  # pyright: ignore

import emoreg
from emoreg.demo import Loaded, load_any

R = TypeVar("R", bound="SharedFlags")
C = TypeVar("C")


@dataclass
class SharedFlags:
    """Flags that every recipe has besides those of its trainer."""

    vectors: str = field(metadata={"help": "File made by `emoreg extract`."})
    model: str = field(
        default="demo", metadata={"help": "`demo`, a folder or a hub id."}
    )
    reference: str = field(
        default="",
        metadata={"help": "File made by `emoreg calibrate`; measured now if empty."},
    )
    terms: str = field(
        default="decouple",
        metadata={"help": "`none` is the control.", "choices": ["decouple", "none"]},
    )
    contrast: float = field(default=1.0, metadata={"help": "Weight of the decoupler."})

    def __post_init__(self) -> None:
        """Refuse unknown terms, which would train another arm than was meant."""
        (known,) = (f.metadata["choices"] for f in fields(self) if f.name == "terms")
        if self.terms not in known:  # argparse checks no `--config` file
            raise ValueError(
                f"`terms` must be one of {', '.join(known)}, got {self.terms!r}. "
                "Correct it"
            )


def untrained(
    recipe: SharedFlags,
) -> tuple[Loaded, emoreg.EmotionVectors, emoreg.Reference]:
    """Return the model, its vectors, and what was or now is calibrated on it."""
    loaded = load_any(recipe.model)
    vectors = emoreg.EmotionVectors.load(recipe.vectors)
    if recipe.reference:
        return loaded, vectors, emoreg.Reference.load(recipe.reference)
    twins = emoreg.Corpus.packaged().transcripts("train")
    reference = emoreg.calibrate(loaded.model, loaded.tokenizer, twins, vectors)
    return loaded, vectors, reference


def parsed(
    recipe: type[R], config: type[C], arguments: list[str] | None
) -> tuple[R, C]:
    """Return both parts of the command line; on a CPU, say so to accelerate."""
    arguments = list(arguments or [])
    if not torch.cuda.is_available():
        arguments += ["--use_cpu", "true", "--bf16", "false"]
    parser: Any = TrlParser((recipe, config))  # pyright: ignore
    return parser.parse_args_and_config(arguments)
