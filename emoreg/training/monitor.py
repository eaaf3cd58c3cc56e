"""Live readings: what the log shows of emotions, split by failing and passing."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emoreg.losses.term import Probe, Reduce, probe_of
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import LDA, LOGISTIC, EmotionVectors

_GROUPS = ("fail", "pass", "assistant")


@final
class Monitor:
    """Accumulates readings on the device between two log lines.

    Logged per reader, emotion and layer: the mean z-score at failing and at passing
    decision tokens and over Assistant tokens, and the failure slope (failing minus
    passing) where both were seen. A z-score is against the reference model's passing
    decision tokens. The audit reader's chart stands beside the loss reader's: the two
    drifting apart is what evasion looks like.

    Keys: `emotion/<name>/L<layer>/<reader>/{fail,pass,assistant,slope}`.
    """

    def __init__(
        self,
        vectors: EmotionVectors,
        *,
        emotions: Sequence[str] = ("desperate", "calm"),
        layers: Sequence[int] | None = None,
        readers: Sequence[str] | None = None,
    ) -> None:
        """Choose what is logged.

        Args:
            vectors: The model's emotion vectors.
            emotions: Which to log; those without a vector are refused.
            layers: Which layers; None takes the deepest loss layer and the shallowest
                and deepest audit layers.
            readers: None takes LDA and logistic where the file has them.
        """
        vectors.emotion_indices(emotions)
        preferred = [name for name in (LDA, LOGISTIC) if name in vectors.readers]
        self.readers = tuple(readers or preferred or vectors.readers[:1])
        for name in self.readers:
            vectors.reader_index(name)
        self.vectors, self.emotions = vectors, tuple(emotions)
        self._asked_layers = layers
        self.probes: tuple[Probe, ...] = ()
        self._sums: dict[str, Tensor] = {}

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
        self._sums = {}

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
        mode: str = "train",
    ) -> None:
        """Add one batch; nothing leaves the device.

        Args:
            streams: Residual stream per layer.
            positions: Decision tokens.
            failure: Outcome at each; NaN where unknown or absent.
            assistant: Marks the tokens of Assistant turns.
            mode: `train` or `eval`; the two are never mixed.
        """
        fail, passed = failure.nan_to_num(0.0), (1 - failure).nan_to_num(0.0)
        rows = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1)
        sums = []
        for probe in self.probes:
            for layer in probe.layers:
                stream = streams[layer].detach()
                at = probe.read(stream[rows, positions], layer=layer)
                everywhere = probe.read(stream, layer=layer)
                sums.append(_weighted(at, fail))
                sums.append(_weighted(at, passed))
                sums.append(_weighted(everywhere, assistant.float()))
        total = torch.stack(sums)
        self._sums[mode] = self._sums[mode] + total if mode in self._sums else total

    def metrics(self, reduce: Reduce, *, mode: str = "train") -> dict[str, float]:
        """Return the readings since the last call, over all processes, and start anew.

        Every process must call it, also one that saw no failing segment.
        """
        if mode not in self._sums:
            return {}
        sums = reduce(self._sums.pop(mode)).cpu()
        result: dict[str, float] = {}
        rows = iter(sums)
        for probe in self.probes:
            for layer in probe.layers:
                groups = {group: next(rows) for group in _GROUPS}
                for column, emotion in enumerate(probe.emotions):
                    key = f"emotion/{emotion}/L{layer}/{probe.reader}"
                    result |= _scalars(key, groups, column)
        return result


def _weighted(
    values: Float[Tensor, "batch place emotion"], weight: Float[Tensor, "batch place"]
) -> Float[Tensor, " emotion_and_count"]:
    kept = torch.where((weight > 0).unsqueeze(-1), values, 0.0)
    total = torch.einsum("bpe,bp->e", kept, weight)
    return torch.cat([total, weight.sum().unsqueeze(0)])


def _scalars(key: str, groups: dict[str, Tensor], column: int) -> dict[str, float]:
    means = {
        group: float(sums[column] / sums[-1])
        for group, sums in groups.items()
        if float(sums[-1]) > 0
    }
    if {"fail", "pass"} <= means.keys():
        means["slope"] = means["fail"] - means["pass"]
    return {f"{key}/{name}": value for name, value in means.items()}
