"""Live readings: what the log shows of emotions, split by failing and passing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emoreg.losses.term import Probe, Reduce, probe_of
from emoreg.residual.tokens import Thoughts
from emoreg.training.reference import Reference
from emoreg.training.watching.alerts import Alert
from emoreg.training.watching.excerpts import Excerpts
from emoreg.training.watching.lens import Lens
from emoreg.training.watching.probe_set import ProbeSet
from emoreg.training.watching.tallies import (
    Histogram,
    figures,
    histogram,
    tally,
    totals,
)
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA, LOGISTIC, RANDOM

_GROUPS: tuple[str, ...] = ("fail", "pass", "assistant", "think", "answer")
"""The last two only where the tokenizer tells thinking from answering."""
_MEMORY = 200.0
"""Turns after which one counts 1/e in the running slope."""

logger = logging.getLogger(__name__)


@final
class Monitor:
    """Accumulates readings on the device between two log lines.

    Logged per reader, emotion and layer: mean, spread and, where there are enough,
    5th and 95th percentile of the z-score at failing and at passing decision tokens
    and over Assistant tokens, with the mean cosine; the failure slope (failing minus
    passing) where both were seen, and the slope over the last few hundred turns. A
    z-score is against the reference model's passing decision tokens. A cosine is
    `<h - c, d> / |h - c|`, with `c` the vectors' centre and `d` the unit direction: a
    stream that draws nearer to the centre has smaller z-scores and the same cosines.

    Two charts stand beside the loss reader's: the audit reader's, since the two
    drifting apart is what evasion looks like, and that of random directions, since
    what moves those as well is no matter of emotions.

    Keys: `emotion/<name>/L<layer>/<reader>/<group>` with the groups `fail`, `pass`,
    `assistant`, and for reasoning models `think` and `answer`, each alone and with
    `_std`, `_p05`, `_p95`, `_cosine`; `.../slope`, `.../slope_running`;
    `emotion_turns/{fail,pass,unknown}`; `emotion_norm/L<layer>`.
    """

    def __init__(
        self,
        vectors: EmotionVectors,
        *,
        emotions: Sequence[str] = ("desperate", "calm"),
        layers: Sequence[int] | None = None,
        readers: Sequence[str] | None = None,
        probe_set: ProbeSet | None = None,
        alerts: Sequence[Alert] = (),
        gradients_every: int = 50,
        log_texts: int = 0,
    ) -> None:
        """Choose what is logged.

        Args:
            vectors: The model's emotion vectors.
            emotions: Which to log; those without a vector are refused.
            layers: Which layers; None takes the deepest loss layer and the shallowest
                and deepest audit layers.
            readers: None takes LDA and logistic where the file has them, and `random`
                where the reference has its units.
            probe_set: Fixed dialogues to be read as well, every so many steps.
            alerts: Thresholds on what is logged. That a reading is not finite is told
                without one.
            gradients_every: Optimizer steps from one measurement of the terms'
                gradients to the next; 0 is never. Each costs a backward pass of the
                task and of each term.
            log_texts: Assistant turns whose text is logged with each line, with their
                readings and outcomes. No text of any row is logged unless you ask.

        Raises:
            ValueError: On an emotion or reader that the vectors don't have, or a
                negative `gradients_every`.
        """
        if gradients_every < 0:
            raise ValueError(
                "`gradients_every` must be a number of optimizer steps, or 0 for "
                f"never, got {gradients_every}"
            )
        vectors.emotion_indices(emotions)
        for name in readers or ():
            vectors.unit_directions(layer=vectors.layers[0], reader=name)
        self.vectors, self.emotions = vectors, tuple(emotions)
        self.probe_set, self.alerts = probe_set, tuple(alerts)
        self.gradients_every = gradients_every
        self.excerpts = Excerpts(log_texts) if log_texts else None
        self.histograms: dict[str, Histogram] = {}
        """Of the last log line: keys as those of means, with `emotion_histogram/`."""
        self._asked_layers, self._asked_readers = layers, readers
        self.probes: tuple[Probe, ...] = ()
        self._lenses: dict[int, Lens] = {}
        self._sums: dict[str, _Sums] = {}
        self._running: Tensor | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that must be captured; empty before `prepare`."""
        return self.probes[0].layers if self.probes else ()

    def prepare(self, reference: Reference) -> None:
        """Take units from `reference`."""
        plan = reference.plan
        default = {plan.loss[-1], plan.audit[0], plan.audit[-1]}
        layers = tuple(self._asked_layers or sorted(default))
        readers = tuple(self._asked_readers or self._default_readers(reference))
        self.probes = tuple(
            self._probe(reader, layers, reference) for reader in readers
        )
        self._lenses = {layer: self._lens(layer, reference) for layer in layers}
        self._sums, self._running = {}, None

    def place(self, device: torch.device) -> None:
        """Move to `device` what readings need, so that no step has to."""
        self.probes = tuple(probe.to(device) for probe in self.probes)
        self._lenses = {layer: lens.to(device) for layer, lens in self._lenses.items()}

    @torch.no_grad()
    def update(
        self,
        streams: dict[int, Float[Tensor, "batch pos d_model"]],
        positions: Int[Tensor, "batch turn"],
        failure: Float[Tensor, "batch turn"],
        assistant: Bool[Tensor, "batch pos"],
        *,
        input_ids: Int[Tensor, "batch pos"],
        turns: Bool[Tensor, "batch turn"],
        thoughts: Thoughts | None = None,
        mode: str = "train",
    ) -> None:
        """Add one batch; nothing leaves the device.

        Args:
            streams: Residual stream per layer.
            positions: Decision tokens.
            failure: Outcome at each; NaN where unknown or absent.
            assistant: Marks the tokens of Assistant turns.
            input_ids: What the model read; kept where texts are to be logged.
            turns: Says which of the decision tokens exist.
            thoughts: Which of the Assistant's tokens are thinking and which answer;
                None where the tokenizer doesn't tell.
            mode: `train` or `eval`; the two are never mixed.
        """
        fail, passed = failure.nan_to_num(0.0), (1 - failure).nan_to_num(0.0)
        split = () if thoughts is None else (thoughts.think, thoughts.answer)
        at_turns = torch.stack([fail, passed]).flatten(1)
        at_tokens = torch.stack([assistant, *split]).flatten(1).float()
        rows = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1)
        readings, cosines, norms = [], [], []
        for layer in self.layers:
            seen = self._lenses[layer].read(streams[layer].detach())
            for values, sums, into in (
                (seen.scores, tally, readings),
                (seen.cosines, totals, cosines),
            ):
                parts = ((values[rows, positions], at_turns), (values, at_tokens))
                into.append(torch.cat([sums(x.flatten(0, 1), w) for x, w in parts]))
            norms.append(torch.where(assistant, seen.norms, 0.0).sum())
        unknown = turns.sum() - fail.sum() - passed.sum()
        counts = [fail.sum(), passed.sum(), unknown, assistant.sum().float(), *norms]
        added = _Sums(
            readings=torch.stack(readings),
            cosines=torch.stack(cosines),
            counts=torch.stack(counts),
        )
        self._sums[mode] = self._sums[mode] + added if mode in self._sums else added
        if mode == "train" and self.excerpts is not None:
            self.excerpts.keep(
                self.probes[0],
                streams,
                input_ids,
                assistant,
                positions=positions,
                turns=turns,
                failure=failure,
            )

    def metrics(self, reduce: Reduce, *, mode: str = "train") -> dict[str, float]:
        """Return the readings since the last call, over all processes, and start anew.

        Every process must call it, also one that saw no failing segment.
        """
        self.histograms = {}
        if mode not in self._sums:
            return {}
        sums = self._sums.pop(mode).over(reduce)
        result = _counted(sums.counts.tolist(), self.layers)
        readings, cosines = sums.readings.numpy(), sums.cosines.numpy()
        running = self._remember(sums.readings) if mode == "train" else None
        for key, place in self._places():
            result |= _scalars(key, readings[place], cosines[place])
            self.histograms |= _histograms(key, readings[place])
            if running is not None and bool((running[place][:, 0] > 0).all()):
                fail, passed = (running[place][:, 1] / running[place][:, 0]).tolist()
                result[f"{key}/slope_running"] = fail - passed
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the running slopes' sums, for a checkpoint."""
        if self._running is None:
            return {}
        return {"running": self._running, "keys": [key for key, _ in self._places()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, if it is of the same readings."""
        self._running = state.get("running")
        if "running" in state and state.get("keys") != [k for k, _ in self._places()]:
            self._running = None
            logger.warning(
                "The checkpoint's running slopes are of other readings than this "
                "monitor's; they start anew"
            )

    def _places(self) -> list[tuple[str, tuple[int, slice, int]]]:
        """Return each reading's key and where its groups are: layer, all, column."""
        columns = [(p.reader, emotion) for p in self.probes for emotion in p.emotions]
        return [
            (f"emotion/{emotion}/L{layer}/{reader}", (row, slice(None), column))
            for row, layer in enumerate(self.layers)
            for column, (reader, emotion) in enumerate(columns)
        ]

    def _remember(
        self, rows: Float[Tensor, "layer group column sum"]
    ) -> Float[Tensor, "layer side column two"]:
        """Add counts and sums of failing and passing turns; older ones fade."""
        new = rows[:, :2, :, :2]  # of the groups fail and pass: count and sum
        fade = torch.exp(-new[..., :1] / _MEMORY)
        before = 0.0 if self._running is None else self._running * fade
        self._running = new + before
        return self._running

    def _default_readers(self, reference: Reference) -> tuple[str, ...]:
        known = self.vectors.readers
        chosen = tuple(name for name in (LDA, LOGISTIC) if name in known) or known[:1]
        if RANDOM in reference.readers:
            return (*chosen, RANDOM)
        logger.warning(
            "The reference has no units of random directions, so none are read beside "
            "the emotions. Calibrate again (`emoreg calibrate`) to have them"
        )
        return chosen

    def _probe(
        self, reader: str, layers: tuple[int, ...], reference: Reference
    ) -> Probe:
        at = {"reader": reader, "layers": layers, "emotions": self.emotions}
        return probe_of(
            self.vectors,
            **at,
            success_level=reference.unit("success_level", **at),
            sigma=reference.unit("success_std", **at),
        )

    def _lens(self, layer: int, reference: Reference) -> Lens:
        """Return the probes' directions at one layer, side by side."""
        row = self.layers.index(layer)
        at = {"layers": (layer,), "emotions": self.emotions}
        levels = [
            reference.unit("success_level", reader=probe.reader, **at)[0]
            for probe in self.probes
        ]
        return Lens(
            centre=self.vectors.centre[self.vectors.layer_index(layer)],
            directions=torch.cat([probe.directions[row] for probe in self.probes]),
            level=torch.cat(levels),
            spread=torch.cat([probe.sigma[row] for probe in self.probes]),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Sums:
    """Of all readings, and of what is counted beside them."""

    readings: Float[Tensor, "layer group column sum"]
    cosines: Float[Tensor, "layer group column"]
    counts: Float[Tensor, " count"]
    """Failing, passing and unknown turns, Assistant tokens, then a norm per layer."""

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            readings=self.readings + other.readings,
            cosines=self.cosines + other.cosines,
            counts=self.counts + other.counts,
        )

    def over(self, reduce: Reduce) -> "_Sums":
        """Return the sums over processes, on the host, by one reduce."""
        parts = (self.readings, self.cosines, self.counts)
        summed = reduce(torch.cat([part.flatten() for part in parts])).cpu()
        readings, cosines, counts = summed.split([part.numel() for part in parts])
        return _Sums(
            readings=readings.view_as(self.readings),
            cosines=cosines.view_as(self.cosines),
            counts=counts,
        )


def _counted(counts: list[float], layers: tuple[int, ...]) -> dict[str, float]:
    fail, passed, unknown, spoken, *norms = counts
    turns = {"fail": fail, "pass": passed, "unknown": unknown}
    result = {f"emotion_turns/{name}": count for name, count in turns.items()}
    if spoken:
        for layer, norm in zip(layers, norms, strict=True):
            result[f"emotion_norm/L{layer}"] = norm / spoken
    return result


def _scalars(
    key: str, sums: Float[np.ndarray, "group sum"], cosines: Float[np.ndarray, " group"]
) -> dict[str, float]:
    """Return the figures of one reading in all groups that there are."""
    result: dict[str, float] = {}
    for group, own, cosine in zip(_GROUPS, sums, cosines, strict=False):
        found = figures(own)
        if found:
            found["_cosine"] = float(cosine / own[0])
        result |= {f"{key}/{group}{name}": value for name, value in found.items()}
    if f"{key}/fail" in result and f"{key}/pass" in result:
        result[f"{key}/slope"] = result[f"{key}/fail"] - result[f"{key}/pass"]
    return result


def _histograms(key: str, sums: Float[np.ndarray, "group sum"]) -> dict[str, Histogram]:
    name = key.replace("emotion/", "emotion_histogram/", 1)
    found = zip(_GROUPS, map(histogram, sums), strict=False)
    return {f"{name}/{group}": made for group, made in found if made is not None}
