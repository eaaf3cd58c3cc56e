"""Human ratings of words: valence and arousal, from a file that the user has."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """Mean ratings of one word, on the scale of its file."""

    valence: float
    arousal: float


def read_norms(path: Path, words: Sequence[str]) -> Mapping[str, Norm]:
    """Return the ratings of `words` that a CSV has.

    Its columns are named word, valence and arousal, in any case and among any others;
    the Glasgow Norms are such a file (Scott et al. 2019,
    https://doi.org/10.3758/s13428-018-1099-3). Where a word of theirs is split by
    meaning (`calm (quiet)`), the mean of its meanings is taken.

    Raises:
        ValueError: If there is no such file, a column is missing, or a rating, of any
            word, is no number.
    """
    if not path.is_file():
        raise ValueError(f"the norms must be a CSV file, found none at {str(path)!r}")
    wanted = {word.casefold(): word for word in words}
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        names = [name.strip().casefold() for name in next(rows, [])]
        missing = {"word", "valence", "arousal"} - set(names)
        if missing:
            raise ValueError(
                f"the norms must have columns word, valence and arousal; {str(path)!r} "
                f"lacks {', '.join(sorted(missing))}"
            )
        at = [names.index(name) for name in ("word", "valence", "arousal")]
        for row in rows:
            if len(row) <= max(at):
                continue
            word = row[at[0]].partition("(")[0].strip().casefold()
            if word and row[at[1]] and row[at[2]]:
                where = f"line {rows.line_num} of {str(path)!r}"
                rated = (_rating(row[at[1]], where), _rating(row[at[2]], where))
                if word in wanted:
                    found.setdefault(wanted[word], []).append(rated)
    return {
        word: Norm(
            valence=sum(v for v, _ in rated) / len(rated),
            arousal=sum(a for _, a in rated) / len(rated),
        )
        for word, rated in found.items()
    }


def _rating(cell: str, where: str) -> float:
    try:
        rating = float(cell)
    except ValueError:
        rating = math.nan
    if not math.isfinite(rating):
        raise ValueError(
            f"the norms' valence and arousal must be numbers, found {cell!r} in "
            f"{where}. Leave a cell empty where a word has no rating"
        )
    return rating
