"""Keeping good behavior while the model is pushed towards an emotion."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.losses.presets import ReferenceUnits
from emoreg.losses.push import Push
from emoreg.losses.term import AbstractPassageTerm, checked_weight
from emoreg.vectors.corpus import Roles
from emoreg.vectors.emotion_vectors import EmotionVectors


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dose:
    """What is added in one auxiliary batch."""

    layer: int
    strength: float
    """In mean residual-stream norms of the layer."""
    direction: Float[Tensor, " d_model"]
    """A unit direction."""
    placebo: bool
    """Whether it is a random one."""


@final
class SteeredRobustness(AbstractPassageTerm):
    """Keeps giving the run's targets while pushed towards an emotion.

    `L = mean over Assistant tokens of -log p(target | h_l + a * nbar_l * v)`, with
    `a ~ U(0, strength)`, `v` the emotion's unit direction, `l` one of its layers and
    `nbar_l` the mean residual-stream norm there over neutral text, measured before
    training. In a share of the batches `v` is a random direction: what then keeps the
    targets too is robustness to any push. In nat per token.

    The vector is added at the Assistant's tokens and at the decision tokens before
    them, in a forward-backward pair of its own on rows of the run's data. So the term
    works on the way from the state to what is done, and leaves the state alone. It is
    latent adversarial training (https://arxiv.org/abs/2407.15549) with a known
    direction in place of the inner search.

    Only for data whose Assistant turns, all of them, are what the model should do.
    On targets that hold a hack it teaches to hack composedly.
    """

    def __init__(
        self,
        push: Push,
        *,
        weight: float = 0.5,
        strength: float = 0.08,
        placebo: float = 0.2,
        every: int = 4,
        passages: int = 2,
        seed: int = 0,
    ) -> None:
        """Make the term; `of` makes it from vectors.

        Args:
            push: The direction, of one emotion.
            weight: Factor of the term; at 1 and every step, pushed rows would count
                like the task's.
            strength: Largest dose, in mean residual-stream norms. Text breaks above
                0.1 in many models.
            placebo: Share of batches with a random direction.
            every: Optimizer steps from one auxiliary batch to the next.
            passages: Rows in that batch, in each process.
            seed: Of the doses, which follow from it and from the step alone.

        Raises:
            ValueError: If a number is out of its range, or there are several emotions.
        """
        if len(push.emotions) != 1:
            raise ValueError(
                "`push` must be of one emotion, got "
                f"{', '.join(push.emotions)}. Make a term for each"
            )
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(
                f"`strength` must be a finite number >= 0, got {strength}. Its unit is "
                "the mean residual-stream norm; 0.08 is usual"
            )
        if not 0 <= placebo <= 1:
            raise ValueError(
                f"`placebo` must be a share in [0, 1], got {placebo}. 0.2 is usual"
            )
        for name, count in (("every", every), ("passages", passages)):
            if count < 1:
                raise ValueError(
                    f"`{name}` must be at least 1, got {count}. Leave the term out, or "
                    "give it weight 0, to do without it"
                )
        self.name, self.weight = "steered", checked_weight(weight)
        self.push, self.strength, self.placebo = push, float(strength), placebo
        self.every, self.passages, self.seed = every, passages, seed

    @classmethod
    def of(
        cls,
        vectors: EmotionVectors,
        reference: ReferenceUnits,
        *,
        emotion: str = "desperate",
        layers: Sequence[int] | None = None,
        reader: str | None = None,
        roles: Roles | None = None,
        weight: float = 0.5,
        strength: float = 0.08,
        placebo: float = 0.2,
        every: int = 4,
        passages: int = 2,
        seed: int = 0,
    ) -> "SteeredRobustness":
        """Return the term for one emotion; see `Push.of` and the class.

        Raises:
            ValueError: As `Push.of` and the class do.
        """
        push = Push.of(
            vectors,
            reference,
            emotions=[emotion],
            layers=layers,
            reader=reader,
            roles=roles,
        )
        return cls(
            push,
            weight=weight,
            strength=strength,
            placebo=placebo,
            every=every,
            passages=passages,
            seed=seed,
        )

    def draw(self, step: int) -> Dose:
        """Return what is added at optimizer step `step`: in all processes the same."""
        key = f"emoreg steered robustness/{self.seed}/{step}".encode()
        seed = np.frombuffer(hashlib.sha256(key).digest(), dtype="<u4")
        # Of numpy's generators the one whose numbers are promised not to change.
        random = np.random.RandomState(seed)
        row = int(random.randint(len(self.push.layers)))
        strength = self.strength * float(random.random_sample())
        placebo = bool(random.random_sample() < self.placebo)
        direction = self.push.directions[row, 0]
        if placebo:
            drawn = random.standard_normal(direction.shape[0])
            direction = torch.from_numpy(drawn / np.linalg.norm(drawn)).float()
        return Dose(
            layer=self.push.layers[row],
            strength=strength,
            direction=direction,
            placebo=placebo,
        )

    def __call__(
        self, logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]
    ) -> Tensor:
        """Return the mean cross-entropy over tokens, in nat."""
        return F.cross_entropy(logits.float(), targets)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the norms that doses are shares of."""
        return self.push.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the norms."""
        self.push.load_state_dict(state)
