"""Live readings: what the log shows of emotions, split by failing and passing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emoreg.losses.term import Probe, Reduce, probe_of
from emoreg.training.alerts import Alert
from emoreg.training.probe_set import ProbeSet
from emoreg.training.reference import Reference
from emoreg.training.tallies import figures, tally
from emoreg.vectors.emotion_vectors import LDA, LOGISTIC, EmotionVectors

_GROUPS: tuple[str, ...] = ("fail", "pass", "assistant")
_MEMORY = 200.0
"""Turns after which one counts 1/e in the running slope."""


@final
class Monitor:
    """Accumulates readings on the device between two log lines.

    Logged per reader, emotion and layer: mean, spread and, where there are enough,
    5th and 95th percentile of the z-score at failing and at passing decision tokens
    and over Assistant tokens; the failure slope (failing minus passing) where both
    were seen, and the slope over the last few hundred turns. A z-score is against the
    reference model's passing decision tokens. The audit reader's chart stands beside
    the loss reader's: the two drifting apart is what evasion looks like.

    Keys: `emotion/<name>/L<layer>/<reader>/<group>` with the groups `fail`, `pass`,
    `assistant`, each alone and with `_std`, `_p05`, `_p95`; `.../slope`,
    `.../slope_running`; `emotion_turns/{fail,pass,unknown}`; `emotion_norm/L<layer>`.
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
    ) -> None:
        """Choose what is logged.

        Args:
            vectors: The model's emotion vectors.
            emotions: Which to log; those without a vector are refused.
            layers: Which layers; None takes the deepest loss layer and the shallowest
                and deepest audit layers.
            readers: None takes LDA and logistic where the file has them.
            probe_set: Fixed dialogues to be read as well, every so many steps.
            alerts: Thresholds on what is logged. That a reading is not finite is told
                without one.
        """
        vectors.emotion_indices(emotions)
        preferred = [name for name in (LDA, LOGISTIC) if name in vectors.readers]
        self.readers = tuple(readers or preferred or vectors.readers[:1])
        for name in self.readers:
            vectors.reader_index(name)
        self.vectors, self.emotions = vectors, tuple(emotions)
        self.probe_set, self.alerts = probe_set, tuple(alerts)
        self._asked_layers = layers
        self.probes: tuple[Probe, ...] = ()
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
        self.probes = tuple(
            self._probe(reader, layers, reference) for reader in self.readers
        )
        self._sums, self._running = {}, None

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

    @torch.no_grad()
    def update(
        self,
        streams: dict[int, Float[Tensor, "batch pos d_model"]],
        positions: Int[Tensor, "batch turn"],
        failure: Float[Tensor, "batch turn"],
        assistant: Bool[Tensor, "batch pos"],
        *,
        turns: Bool[Tensor, "batch turn"],
        mode: str = "train",
    ) -> None:
        """Add one batch; nothing leaves the device.

        Args:
            streams: Residual stream per layer.
            positions: Decision tokens.
            failure: Outcome at each; NaN where unknown or absent.
            assistant: Marks the tokens of Assistant turns.
            turns: Says which of the decision tokens exist.
            mode: `train` or `eval`; the two are never mixed.
        """
        fail, passed = failure.nan_to_num(0.0), (1 - failure).nan_to_num(0.0)
        spoken = assistant.float()
        rows = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1)
        readings, norms = [], []
        for probe in self.probes:
            for layer in probe.layers:
                stream = streams[layer].detach()
                at = probe.read(stream[rows, positions], layer=layer)
                everywhere = probe.read(stream, layer=layer)
                readings += [tally(at, fail), tally(at, passed)]
                readings.append(tally(everywhere, spoken))
        for layer in self.layers:
            size = streams[layer].detach().float().norm(dim=-1)
            norms.append(torch.where(assistant, size, 0.0).sum())
        unknown = turns.sum() - fail.sum() - passed.sum()
        counts = torch.stack([fail.sum(), passed.sum(), unknown, spoken.sum(), *norms])
        added = _Sums(readings=torch.stack(readings), counts=counts)
        self._sums[mode] = self._sums[mode] + added if mode in self._sums else added

    def metrics(self, reduce: Reduce, *, mode: str = "train") -> dict[str, float]:
        """Return the readings since the last call, over all processes, and start anew.

        Every process must call it, also one that saw no failing segment.
        """
        if mode not in self._sums:
            return {}
        sums = self._sums.pop(mode).over(reduce)
        result = _counted(sums.counts.tolist(), self.layers)
        rows = sums.readings.unflatten(0, (-1, len(_GROUPS)))  # place, group, emotion
        running = self._remember(rows) if mode == "train" else None
        places = [(p, layer) for p in self.probes for layer in p.layers]
        for place, (probe, layer) in enumerate(places):
            for column, emotion in enumerate(probe.emotions):
                key = f"emotion/{emotion}/L{layer}/{probe.reader}"
                groups = dict(zip(_GROUPS, rows[place, :, column], strict=True))
                result |= _scalars(key, groups)
                if running is not None and bool(
                    (running[place, :, column, 0] > 0).all()
                ):
                    means = running[place, :, column, 1] / running[place, :, column, 0]
                    result[f"{key}/slope_running"] = float(means[0] - means[1])
        return result

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running slopes' sums, for a checkpoint."""
        return {} if self._running is None else {"running": self._running}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self._running = state.get("running")

    def _remember(
        self, rows: Float[Tensor, "place group emotion sum"]
    ) -> Float[Tensor, "place side emotion two"]:
        """Add counts and sums of failing and passing turns; older ones fade."""
        new = rows[:, :2, :, :2]  # of the groups fail and pass: count and sum
        fade = torch.exp(-new[..., :1] / _MEMORY)
        before = 0.0 if self._running is None else self._running * fade
        self._running = new + before
        return self._running


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Sums:
    """Of all readings, and of what is counted beside them."""

    readings: Float[Tensor, "place_and_group emotion sum"]
    counts: Float[Tensor, " count"]
    """Failing, passing and unknown turns, Assistant tokens, then a norm per layer."""

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            readings=self.readings + other.readings, counts=self.counts + other.counts
        )

    def over(self, reduce: Reduce) -> "_Sums":
        """Return the sums over processes, on the host, by one reduce."""
        flat = torch.cat([self.readings.flatten(), self.counts])
        summed = reduce(flat).cpu()
        size = self.readings.numel()
        return _Sums(
            readings=summed[:size].view_as(self.readings), counts=summed[size:]
        )


def _counted(counts: list[float], layers: tuple[int, ...]) -> dict[str, float]:
    fail, passed, unknown, spoken, *norms = counts
    turns = {"fail": fail, "pass": passed, "unknown": unknown}
    result = {f"emotion_turns/{name}": count for name, count in turns.items()}
    if spoken:
        for layer, norm in zip(layers, norms, strict=True):
            result[f"emotion_norm/L{layer}"] = norm / spoken
    return result


def _scalars(key: str, groups: Mapping[str, Tensor]) -> dict[str, float]:
    found = {group: figures(sums) for group, sums in groups.items()}
    result = {
        f"{key}/{group}{name}": value
        for group, of_group in found.items()
        for name, value in of_group.items()
    }
    if found["fail"] and found["pass"]:
        result[f"{key}/slope"] = found["fail"][""] - found["pass"][""]
    return result
