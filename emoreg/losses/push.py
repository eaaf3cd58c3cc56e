"""What is added to the residual stream while training: whose directions, how far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.presets import ReferenceUnits, check_same_vectors
from emoreg.losses.term import refuse_audit_items
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import MEAN_DIFFERENCE


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Push:
    """Unit directions that are added to the residual stream, and where."""

    directions: Float[Tensor, "layer emotion d_model"]
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    reader: str
    norms: dict[int, float] = field(default_factory=dict)
    """Mean residual-stream norm of each layer over neutral text, in the model's own
    units: what strengths are shares of. Measured before training, and then kept."""

    @classmethod
    def of(
        cls,
        vectors: EmotionVectors,
        reference: ReferenceUnits,
        *,
        emotions: Sequence[str],
        layers: Sequence[int] | None = None,
        reader: str | None = None,
        roles: Roles | None = None,
    ) -> "Push":
        """Return the directions of `emotions` at `layers`.

        Args:
            vectors: The model's emotion vectors.
            reference: What `calibrate` measured with them; its plan has the layers.
            emotions: Whose directions; none that the audit judges by.
            layers: Decoder blocks whose output is pushed. By default the loss layers
                but the deepest, if there are several: `lora_config` ends there, so
                that no block behind it is trained and could respond.
            reader: Which directions; by default the mean differences, which are what
                steers, where the vectors have them. `"random"` makes a placebo arm.
            roles: Which emotions are the audit's; the packaged roles when None.

        Raises:
            ValueError: If the reference belongs to other vectors, there is no such
                emotion, layer or reader, or one is the audit's.
        """
        check_same_vectors(reference, vectors)
        plan = reference.plan
        layers = tuple((plan.loss[:-1] or plan.loss) if layers is None else layers)
        if reader is None:
            first, known = vectors.readers[0], MEAN_DIFFERENCE in vectors.readers
            reader = MEAN_DIFFERENCE if known else first
        if not layers or not emotions:
            raise ValueError(
                "`layers` and `emotions` must each name one or more, got "
                f"{tuple(layers)} and {tuple(emotions)}. Leave the term out instead"
            )
        refuse_audit_items(
            Corpus.packaged().roles() if roles is None else roles,
            emotions=emotions,
            layers=layers,
            audit_layers=plan.audit,
            reader=reader,
            split=vectors.split,
        )
        columns = list(vectors.emotion_indices(emotions))
        units = [vectors.unit_directions(layer=i, reader=reader) for i in layers]
        return cls(
            directions=torch.stack(units)[:, columns],
            layers=layers,
            emotions=tuple(emotions),
            reader=reader,
        )

    def measured(self, norms: Mapping[int, float]) -> None:
        """Take the mean residual-stream norm of each layer."""
        self.norms.update({layer: float(norms[layer]) for layer in self.layers})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the norms: a resumed run pushes as hard as before."""
        found = [self.norms[layer] for layer in self.layers if self.norms]
        return {"norms": torch.tensor(found, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back the norms."""
        if kept := state["norms"].tolist():
            self.measured(dict(zip(self.layers, kept, strict=True)))
