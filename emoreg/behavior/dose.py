"""How margins follow the strength with which an emotion is pushed: the dose curve."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.behavior.corner_cutting import corner_cutting, scoring_meta
from emoreg.behavior.preferences import SCHEMA, Preferences, prompt_interval
from emoreg.behavior.tables import read_table, write_table
from emoreg.residual.layers import d_model, model_name, num_layers
from emoreg.statistics.bootstrap import Interval
from emoreg.statistics.slopes import cluster_slopes
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.steering import additions, layer_near, mean_norms
from emoreg.vectors.transcripts import Transcript, Variant

STRENGTHS = (-0.1, -0.05, 0.0, 0.05, 0.1)
"""In mean residual-stream norms: about where text begins to break (`emoreg steer`)."""
LAST = (-1,)
"""The round that replies were written for, and that has most failures before it."""
FORMAT = "emoreg.dose/1"
DOSE_SCHEMA = SCHEMA.insert(0, pa.field("strength", pa.float64()))
"""The columns of the file: those of `Preferences`, and at which strength."""

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """What is added to a model's stream, and how strong that is by emotion."""

    strengths: Mapping[str, float]
    """In mean residual-stream norms."""
    norms: Mapping[int, float]
    """Mean residual-stream norm of the layer that is steered."""
    additions: Mapping[int, Float[Tensor, " d_model"]]
    """Per decoder block, in the model's own units."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        vectors: EmotionVectors,
        strengths: Mapping[str, float],
        *,
        reader: str | None = None,
    ) -> "Steering":
        """Measure what the strengths come to in this model.

        As `emoreg steer` does it: at the vectors' layer nearest to two thirds of depth,
        in mean norms over neutral text, along the mean differences.

        Args:
            model: The model that the vectors are of.
            tokenizer: Its tokenizer.
            vectors: Directions.
            strengths: By emotion, in mean residual-stream norms; they add up.
            reader: Other directions, for example `random` ones as a control.

        Raises:
            ValueError: On vectors of another model, an unknown emotion or reader, or a
                strength that is not finite.
        """
        vectors.check_model(
            d_model=d_model(model), num_layers=num_layers(model), name=model_name(model)
        )
        vectors.emotion_indices(list(strengths))
        layer = layer_near(vectors, num_layers(model))
        norms = mean_norms(model, tokenizer, Corpus.packaged(), [layer])
        moved = [
            additions(vectors, emotion, strength, norms=norms, reader=reader)[layer]
            for emotion, strength in strengths.items()
        ]
        return cls(
            strengths=dict(strengths),
            norms=norms,
            additions={layer: torch.stack(moved).sum(0)},
        )

    def times(self, factor: float) -> "Steering":
        """Return the same, `factor` times as strong."""
        return replace(
            self,
            strengths={name: factor * one for name, one in self.strengths.items()},
            additions={at: factor * vector for at, vector in self.additions.items()},
        )


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DoseCurve:
    """Margins of one model at several strengths of one emotion.

    Example:
        `dose_curve(model, tokenizer, twins, vectors, emotion="desperate").slope()` is
        how much the margin moves per mean residual-stream norm, with its interval.
    """

    emotion: str
    tables: Mapping[float, Preferences]
    """By strength, weakest first; all of the same prompts, rounds and versions."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able: what `Preferences.meta` says, emotion, reader, layer and norm."""

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.tables.items()))
        object.__setattr__(self, "tables", ordered)
        if len(ordered) < 2:
            raise ValueError(
                "A dose curve must have at least 2 strengths, found "
                f"{list(ordered)}. Add one"
            )
        first = next(iter(ordered.values()))
        for table in ordered.values():
            table.check_paired(first)

    @property
    def strengths(self) -> tuple[float, ...]:
        """In mean residual-stream norms, weakest first."""
        return tuple(self.tables)

    def margin(self, strength: float, *, variant: str = "fail") -> Interval:
        """Return the mean margin at a strength, see `Preferences.mean`."""
        return self.tables[strength].mean(variant=variant)

    def change(self, strength: float, *, variant: str = "fail") -> Interval:
        """Return the margin at a strength minus that at 0, paired by prompt."""
        table, still = self.tables[strength], self.tables[0.0]
        return table.difference(still, variant=variant)

    def likelihoods(
        self, strength: float, *, variant: str = "fail"
    ) -> tuple[float, float]:
        """Return how likely the honest and the cornering reply are, nat per token.

        Means over the rows of a version. Where both fall far below those at 0, the push
        breaks the model, and its margin says little.
        """
        table = self.tables[strength]
        rows = np.array([version == variant for version in table.variant])
        return float(table.honest[rows].mean()), float(table.corner[rows].mean())

    def slope(self, *, variant: str = "fail", seed: int = 0) -> Interval:
        """Return the slope of the margin against the strength, with its interval.

        Least squares over the strengths for each prompt, then the mean over prompts
        with its 95 % cluster bootstrap interval; in nat per token and per mean
        residual-stream norm. It is the slope of the mean margin. A straight line is
        what is fitted, whatever the curve is: look at `change` too.

        Args:
            variant: `fail` or `pass`.
            seed: Of the bootstrap.

        Raises:
            ValueError: If a prompt has no row of that version, or with fewer than
                three prompts.
        """
        names = next(iter(self.tables.values())).prompts
        margins = []
        for table in self.tables.values():
            at = {name: place for place, name in enumerate(table.prompts)}
            margins.append(table.margins(variant=variant)[[at[name] for name in names]])
        _, slopes = cluster_slopes(
            np.concatenate(margins),
            np.repeat(self.strengths, len(names)),
            np.tile(np.arange(len(names)), len(margins)),
        )
        return prompt_interval(slopes, seed=seed)

    def save(self, path: str | Path) -> Path:
        """Write one parquet file of all strengths, whole or not at all."""
        parts = [
            table.table().add_column(0, "strength", [[strength] * len(table.prompt)])
            for strength, table in self.tables.items()
        ]
        pushes = [t.meta.get("steering", {}) for t in self.tables.values()]
        own = {"emotion": self.emotion, **self.meta, "steering": pushes}
        return write_table(Path(path), pa.concat_tables(parts), FORMAT, own)

    @classmethod
    def load(cls, path: str | Path) -> "DoseCurve":
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or incomplete.
        """
        table, meta = read_table(Path(path), FORMAT, DOSE_SCHEMA)
        rows: dict[float, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            rows.setdefault(row.pop("strength"), []).append(row)
        pushes = meta.pop("steering")
        tables = {
            at: Preferences.of_rows(found, {**meta, "strength": at, "steering": push})
            for (at, found), push in zip(rows.items(), pushes, strict=True)
        }
        return cls(emotion=str(meta.get("emotion")), tables=tables, meta=meta)


def dose_curve(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcripts: Sequence[Transcript],
    vectors: EmotionVectors,
    *,
    emotion: str,
    strengths: Sequence[float] = STRENGTHS,
    rounds: Sequence[int] | None = LAST,
    variants: Sequence[Variant] = ("fail",),
    reader: str | None = None,
    parts: Path | None = None,
    quiet: bool = False,
) -> DoseCurve:
    """Score the replies of `corner_cutting` at each strength of an emotion.

    Args:
        model: The model that the vectors are of.
        tokenizer: Its tokenizer.
        transcripts: Twins.
        vectors: Directions.
        emotion: Whose direction is added, at two thirds of depth (`Steering.of`).
        strengths: In mean residual-stream norms; 0 is always scored.
        rounds: As in `corner_cutting`; each twin's last alone by default.
        variants: As in `corner_cutting`; failing alone by default.
        reader: As in `Steering.of`.
        parts: A folder that keeps what is scored, a file for each strength, and that
            gives it back to a later call with the same settings.
        quiet: No progress bar.

    Raises:
        ValueError: As `Steering.of` and `corner_cutting` do, or if no strength but 0 is
            given.
    """
    wanted = sorted({float(strength) for strength in (0.0, *strengths)})
    if len(wanted) < 2 or not np.isfinite(wanted).all():
        raise ValueError(
            "`strengths` must be finite and hold one besides 0, found "
            f"{list(strengths)}. Try {list(STRENGTHS)}"
        )
    unit = Steering.of(model, tokenizer, vectors, {emotion: 1.0}, reader=reader)
    ((layer, norm),) = unit.norms.items()
    settings = {
        **scoring_meta(model, transcripts, rounds, variants),
        **{"vectors_hash": vectors.hash, "emotion": emotion, "reader": reader},
        "layer": layer,
    }
    chosen = {"rounds": rounds, "variants": variants, "quiet": quiet}
    score = partial(corner_cutting, model, tokenizer, transcripts, **chosen)
    tables = {}
    for strength in wanted:
        at = partial(score, additions=unit.times(strength).additions)
        part = None if parts is None else parts / f"{strength:+g}.parquet"
        tables[strength] = _part(part, {**settings, "strength": strength}, at)
    return DoseCurve(emotion=emotion, tables=tables, meta={**settings, "norm": norm})


def _part(
    part: Path | None, settings: dict[str, Any], score: Callable[[], Preferences]
) -> Preferences:
    """Return the table of a strength: the kept one if it is of these settings."""
    if part is not None and part.is_file():
        table = Preferences.load(part)
        # All but the steering, which hangs on the last bits of measured norms.
        if {**table.meta, "steering": None} == {**settings, "steering": None}:
            return table
        differ = [key for key in settings if table.meta.get(key) != settings[key]]
        _log.warning(
            "%s was scored with another %s: it is scored again",
            *(part.name, ", ".join(differ)),
        )
    table = score()
    table = replace(table, meta={**settings, "steering": table.meta["steering"]})
    if part is not None:
        table.save(part)
    return table
