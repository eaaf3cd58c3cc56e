"""Cross-reading: how much of a change is in the words, and how much in the state.

Three tables of Assistant turns that models wrote themselves (`on_policy`):

    before   the reference reads its own text
    cross    the reference reads the text of the trained model
    after    the trained model reads its own text

    total = after - before
    text  = cross - before        the same reader, other words
    state = after - cross         the same words, another reader

so that text + state = total. All of it is read over Assistant tokens: a decision token
stands before the reply, where the text part is zero whatever the models write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.alignment import on_common_prompts
from emoreg.comparison.figures import (
    RATIO_CROSSING,
    RATIO_STANDARD_ERRORS,
    Units,
    levels_of,
    slope_in_standard_errors,
)
from emoreg.comparison.readings import ON_POLICY, Readings
from emoreg.statistics.bootstrap import Interval, bootstrap_mean, bootstrap_ratio

POSITION = "assistant"
Version = Literal["slope", "failing", "passing"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A change on the models' own text in its two parts, with intervals."""

    total: Interval
    text: Interval
    state: Interval
    share: Interval | None
    """State over total; None where the total is not told from zero: within 3 standard
    errors, or more than 0.1 % of its resamples have the other sign."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CrossRow:
    """One target's split, of the failure slope or of one version's level."""

    target: str
    version: Version
    split: Split


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CrossReading:
    """What of a change is wording and what is state, in `sigma_ref`."""

    rows: tuple[CrossRow, ...]
    n: int
    """Prompts, the unit of the intervals."""
    dropped: int
    """Prompts in which some model wrote nothing that could be read."""
    samples: int | None
    """Replies to a prompt, of the model after training."""
    tokens: int | None
    """Longest reply."""
    text_hash: str
    """Of what the model after training wrote, and both read."""

    def of(self, version: Version) -> tuple[CrossRow, ...]:
        """Return the rows of the slope, or of one version's level."""
        return tuple(row for row in self.rows if row.version == version)

    def row(self, target: str) -> CrossRow:
        """Return the split of a target's failure slope."""
        return next(row for row in self.of("slope") if row.target == target)


def check_cross(before: Readings, cross: Readings, after: Readings) -> None:
    """Refuse three tables that are not what cross-reading needs.

    Raises:
        ValueError: If before or after is not on-policy, or cross is not the reference's
            reading of what after's model wrote.
    """
    for name, table in (("before", before), ("after", after)):
        if table.text != ON_POLICY:
            raise ValueError(
                f"cross-reading needs what both models wrote themselves; {name!r} is a "
                f"table of {table.text} text. Measure it with `--generate`"
            )
    found, wanted = cross.meta.get("prompts_hash"), after.meta.get("text_hash")
    if found != wanted:
        raise ValueError(
            "`cross` must be a reading of the text that `after` wrote, whose hash is "
            f"{wanted}; its `prompts_hash` is {found}. Measure the reference with "
            "`--prompts` and the conversations beside `after`"
        )
    for item in ("model", "adapter", "vectors_hash", "reference_hash"):
        ours, theirs = before.meta.get(item), cross.meta.get(item)
        if ours != theirs:
            raise ValueError(
                f"`cross` must be read by the model of `before`, whose `{item}` is "
                f"{ours!r}; found {theirs!r}. Measure it with the reference"
            )
    for item in ("readers", "layers", "emotions"):
        for name, table in (("cross", cross), ("after", after)):
            if getattr(before, item) != getattr(table, item):
                raise ValueError(
                    f"`{item}` must be the same in all tables, they differ in {name!r}."
                    " Measure it with the same vectors"
                )


def cross_reading(
    before: Readings,
    cross: Readings,
    after: Readings,
    *,
    units: Units,
    families: Mapping[str, Sequence[str]],
    reader: str,
    layers: Sequence[int],
    targets: Sequence[str],
    seed: int = 0,
    n_resamples: int = 10_000,
) -> CrossReading:
    """Split the change of the models' own Assistant turns into text and state.

    Samples are averaged within a prompt, one reader over some layers; intervals are a
    95 % cluster bootstrap (BCa; percentiles for shares) over prompts, widened for few.

    Args:
        before: The reference's reading of its own text.
        cross: The reference's reading of the text that `after` wrote.
        after: The trained model's reading of its own text.
        units: `sigma_ref` and the success level.
        families: Emotions of each family.
        reader: By which it is read.
        layers: Over which it is averaged.
        targets: Emotions and families, a row each.
        seed: Of the resamples.
        n_resamples: More narrows the Monte Carlo noise of the bounds.

    Raises:
        ValueError: If the tables don't belong together (`check_cross`).
    """
    check_cross(before, cross, after)
    three = {"before": before, "cross": cross, "after": after}
    twins, dropped = on_common_prompts(three, POSITION)
    members = [[before.emotions.index(e) for e in f] for f in families.values()]
    names = (*before.emotions, *families)
    at = [names.index(target) for target in targets]
    own, places = before.readers.index(reader), [before.layers.index(i) for i in layers]
    versions: dict[Version, list[np.ndarray]] = {}
    for twin in twins.values():
        levels = levels_of(twin, units, members)
        for version in ("slope", "failing", "passing"):
            values = levels.slope if version == "slope" else getattr(levels, version)
            pooled = values[:, own][:, places].mean(axis=1)[:, at]
            versions.setdefault(version, []).append(pooled)
    how = {"seed": seed, "n_resamples": n_resamples}
    return CrossReading(
        rows=tuple(
            CrossRow(target=t, version=v, split=split(*(x[:, k] for x in found), **how))
            for v, found in versions.items()
            for k, t in enumerate(targets)
        ),
        n=len(twins["before"].prompts),
        dropped=dropped,
        samples=after.meta.get("samples"),
        tokens=(after.meta.get("generation") or {}).get("tokens"),
        text_hash=str(after.meta["text_hash"]),
    )


def split(
    before: Float[np.ndarray, " prompt"],
    cross: Float[np.ndarray, " prompt"],
    after: Float[np.ndarray, " prompt"],
    *,
    seed: int,
    n_resamples: int,
) -> Split:
    """Return the parts of a change from one number per prompt and table."""
    parts = np.stack([after - before, cross - before, after - cross], axis=1)
    how: Any = {"seed": seed, "n_resamples": n_resamples, "keep": False, "expand": True}
    total, text, state = map(bootstrap_mean(parts, **how).at, range(3))
    share = None
    errors = slope_in_standard_errors(parts[:, :1])[0]
    if abs(errors) > RATIO_STANDARD_ERRORS:
        found = bootstrap_ratio(parts[:, 2:], parts[:, :1], **how)
        assert found.crossing is not None
        share = found.at(0) if found.crossing[0] <= RATIO_CROSSING else None
    return Split(total=total, text=text, state=state, share=share)


def cross_document(found: CrossReading) -> dict[str, Any]:
    """Return a cross-reading as JSON-able values."""
    return {
        "position": POSITION,
        "unit": "sigma_ref",
        "n_prompts": found.n,
        "dropped": found.dropped,
        "samples": found.samples,
        "tokens": found.tokens,
        "text_hash": found.text_hash,
        "rows": [
            {
                "target": row.target,
                "of": row.version,
                "total": row.split.total.rounded(),
                "text": row.split.text.rounded(),
                "state": row.split.state.rounded(),
                "state_share": row.split.share and row.split.share.rounded(),
            }
            for row in found.rows
        ],
    }
