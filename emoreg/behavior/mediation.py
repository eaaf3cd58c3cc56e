"""Does cutting corners go through the reading? Failing text, reading set to success."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from emoreg.behavior.corner_cutting import check_finite, check_length, twins_hash
from emoreg.behavior.likelihood import Reply, likelihoods, rendered
from emoreg.behavior.preferences import FEWEST, prompt_interval
from emoreg.behavior.provenance import model_meta
from emoreg.behavior.tables import read_table, write_table
from emoreg.residual.evaluating import evaluating
from emoreg.residual.patch import Patch, patched
from emoreg.residual.tokens import TurnMarkers
from emoreg.statistics.bootstrap import Interval
from emoreg.training.reference import Reference
from emoreg.training.success_patches import success_patches
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.transcripts import Message, Transcript, Variant

FORMAT = "emoreg.mediation/1"
CONDITIONS = ("failing", "patched", "placebo", "passing")
SCHEMA = pa.schema(
    [("prompt", pa.string()), *((name, pa.float64()) for name in CONDITIONS)]
)


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mediation:
    """Margins of the same two replies under four conditions, twin by twin.

    A margin is the log-likelihood of the honest reply to failing feedback minus that of
    the corner-cutting one, in nat per token.

    Example:
        `mediation(model, tokenizer, twins, vectors, reference).indirect` is how far
        the margin moves when only the reading is that after success.
    """

    prompts: tuple[str, ...]
    margins: Mapping[str, Float[np.ndarray, " prompt"]]
    """By condition: after failing feedback, the same with the loss's readings set to
    their level after success, with random directions set so, and after passing
    feedback."""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> Interval:
        """Return what passing feedback does to the margin: passing minus failing."""
        return self._change("passing")

    @property
    def indirect(self) -> Interval:
        """Return the part through the reading: patched minus failing."""
        return self._change("patched")

    @property
    def placebo(self) -> Interval:
        """Return what setting random directions does: the size of an accident."""
        return self._change("placebo")

    @property
    def beyond_placebo(self) -> Interval:
        """Return the indirect effect minus the placebo's."""
        return prompt_interval(
            self.margins["patched"] - self.margins["placebo"], seed=0
        )

    def _change(self, condition: str) -> Interval:
        return prompt_interval(
            self.margins[condition] - self.margins["failing"], seed=0
        )

    def save(self, path: str | Path) -> Path:
        """Write one parquet file, whole or not at all."""
        columns = {"prompt": list(self.prompts), **self.margins}
        table = pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
        return write_table(Path(path), table, FORMAT, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> "Mediation":
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or incomplete.
        """
        table, meta = read_table(Path(path), FORMAT, SCHEMA)
        return cls(
            prompts=tuple(table["prompt"].to_pylist()),
            margins={name: table[name].to_numpy() for name in CONDITIONS},
            meta=meta,
        )


@torch.no_grad()
def mediation(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcripts: Sequence[Transcript],
    vectors: EmotionVectors,
    reference: Reference,
    *,
    roles: Roles | None = None,
    quiet: bool = False,
) -> Mediation:
    """Score both replies as text and reading say failure, and as only the text does.

    The natural indirect effect on the margin: after failing feedback of the last round
    the stream is set, at every decision token and at the loss's layers, to where the
    loss's emotions stand after success, inside their span and nowhere else. What the
    margin then moves went through the reading; what random directions do beside it is
    what setting anything does.

    Args:
        model: The model, before or after training.
        tokenizer: Its tokenizer.
        transcripts: Twins.
        vectors: Emotion vectors of the reference model.
        reference: What `calibrate` measured: levels, and the loss's layers.
        roles: Which emotions a loss acts on; the packaged roles when None.
        quiet: No progress bar.

    Raises:
        ValueError: With fewer than three twins, one that is longer than the model can
            read, or another model's vectors.
        FloatingPointError: If a log-probability is NaN or infinite.
    """
    if len(transcripts) < FEWEST:
        raise ValueError(
            f"`transcripts` must hold at least {FEWEST} twins, as intervals are over "
            f"prompts, found {len(transcripts)}. Add some"
        )
    parts = (vectors, reference, Corpus.packaged().roles() if roles is None else roles)
    patches: dict[str, dict[int, Patch]] = {
        "patched": success_patches(*parts),
        "placebo": success_patches(*parts, placebo=True),
    }
    with evaluating(model):
        rows = [
            _margins(model, tokenizer, twin, patches)
            for twin in tqdm(transcripts, desc="Mediation", disable=quiet)
        ]
    return Mediation(
        prompts=tuple(twin.id for twin in transcripts),
        margins={name: np.array([row[name] for row in rows]) for name in CONDITIONS},
        meta={
            **model_meta(model),
            "prompts_hash": twins_hash(transcripts),
            "vectors_hash": vectors.hash,
            "reference_hash": reference.hash,
        },
    )


def _margins(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    twin: Transcript,
    patches: Mapping[str, dict[int, Patch]],
) -> dict[str, float]:
    """Return the margin of a twin's replies under each condition."""
    decision = TurnMarkers.of(tokenizer).decision_tokens
    found = {}
    for name in CONDITIONS:
        pair = _pair(tokenizer, twin, "pass" if name == "passing" else "fail")
        check_length(model, twin, [pair])
        with patched(model, patches.get(name, {}), where=decision):
            # Without a cache: a patch is set in the pass that reads what it marks.
            honest, corner = likelihoods(model, pair, use_cache=False)
        check_finite((honest, corner), f"twin `{twin.id}`, {name}")
        found[name] = honest - corner
    return found


def _pair(
    tokenizer: PreTrainedTokenizerBase, twin: Transcript, version: Variant
) -> tuple[Reply, Reply]:
    """Return the replies to failing feedback, after one version's last round."""
    said: list[Message] = list(twin.conversation(version).messages[:-1])
    replies = (twin.reply_fail, twin.reply_bad)
    honest, corner = (rendered(tokenizer, said, reply) for reply in replies)
    return honest, corner
