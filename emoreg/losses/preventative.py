"""Pushing a model towards an emotion while it trains, so that training need not."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.presets import ReferenceUnits
from emoreg.losses.push import Push
from emoreg.losses.term import AbstractTerm, checked_weight
from emoreg.residual.steer import addition
from emoreg.vectors.corpus import Roles
from emoreg.vectors.emotion_vectors import EmotionVectors


@final
class PreventativeSteering(AbstractTerm):
    """Adds emotion directions while the task's loss is taken, and at no other time.

    `h_l <- h_l + strength / n * nbar_l * v_l` at the Assistant's tokens, at each of
    `n` layers, with `v_l` the unit direction along the sum of the emotions' directions
    and `nbar_l` the mean residual-stream norm there over neutral text, measured before
    training. Data that call for the state find it there, so that the weights need not
    move to make it; afterwards nothing is added, and what the weights would have come
    to carry is missing (preventative steering, https://arxiv.org/abs/2507.21509).

    There is no loss value, so `emotion_loss/task` and the trainer's own figures are
    those of the pushed model, and compare with runs of the same strength alone. It
    prevents a state that data would teach; one that is there already it may leave.
    """

    def __init__(self, push: Push, *, strength: float = 0.05) -> None:
        """Make the term; `of` makes it from vectors.

        Args:
            push: The directions, of one emotion or several.
            strength: In mean residual-stream norms, shared between the layers. It is
                the term's `weight` too: 0 is off.

        Raises:
            ValueError: If the strength is negative or not finite, or the emotions'
                directions cancel.
        """
        along = push.directions.sum(1)
        if not bool((along.norm(dim=-1) > 1e-3).all()):
            raise ValueError(
                "the directions of `emotions` must not cancel, and those of "
                f"{', '.join(push.emotions)} do. Name one emotion, or several alike"
            )
        self.name, self.weight = "preventative", checked_weight(strength)
        self.push = push
        self._along = torch.nn.functional.normalize(along, dim=-1)

    @classmethod
    def of(
        cls,
        vectors: EmotionVectors,
        reference: ReferenceUnits,
        *,
        emotions: Sequence[str] = ("desperate",),
        layers: Sequence[int] | None = None,
        reader: str | None = None,
        roles: Roles | None = None,
        strength: float = 0.05,
    ) -> "PreventativeSteering":
        """Return the term for some emotions; see `Push.of` and the class.

        Raises:
            ValueError: As `Push.of` and the class do.
        """
        push = Push.of(
            vectors,
            reference,
            emotions=emotions,
            layers=layers,
            reader=reader,
            roles=roles,
        )
        return cls(push, strength=strength)

    def additions(
        self, device: torch.device | None = None
    ) -> dict[int, Float[Tensor, " d_model"]]:
        """Return what is added at each layer, in the model's own units.

        Args:
            device: Where it is to be, from now on; where it is if None.

        Raises:
            KeyError: If the norms were not measured yet.
        """
        self._along = self._along.to(device)
        share = self.weight / len(self.push.layers)
        return {
            layer: addition(unit, strength=share, norm=self.push.norms[layer])
            for layer, unit in zip(self.push.layers, self._along, strict=True)
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the norms that strengths are shares of."""
        return self.push.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the norms."""
        self.push.load_state_dict(state)
