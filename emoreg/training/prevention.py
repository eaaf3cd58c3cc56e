"""Pushing the model in its task's forward pass, and in no other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.losses.preventative import PreventativeSteering
from emoreg.losses.term import AbstractTerm
from emoreg.residual.layers import backbone, decoder_layers
from emoreg.residual.stream_hook import changing
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.outcomes.rollouts import tokens_of
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.steering import mean_norms


@final
class Prevention:
    """What a run's `PreventativeSteering` terms add, all together.

    It acts in the first forward pass with gradients that a trainer's `compute_loss`
    makes while training. Readings of that pass are those of the stream without what
    was added: the capturing hooks come before, and what lower layers have added is
    subtracted, since the stream carries it on. What the blocks between make of it
    remains, as something that the model does.
    """

    def __init__(self, terms: Sequence[AbstractTerm], markers: TurnMarkers) -> None:
        """Take those of `terms` that push."""
        self._terms = [t for t in terms if isinstance(t, PreventativeSteering)]
        self._markers = markers
        self._added: dict[int, Tensor] = {}
        self._where: Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether anything is added."""
        return any(term.weight for term in self._terms)

    def measure(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Measure the mean residual-stream norms of the model as it is now."""
        layers = sorted({i for term in self._terms for i in term.push.layers})
        if not layers:
            return
        norms = mean_norms(model, tokenizer, Corpus.packaged(), layers)
        for term in self._terms:
            term.push.measured(norms)

    def release(self) -> None:
        """Add nothing from now on."""
        self._terms = []

    def strengths(self) -> list[tuple[PreventativeSteering, float]]:
        """Return the terms that push, and how hard."""
        return [(term, term.weight) for term in self._terms if term.weight]

    def around(
        self,
        compute: Callable[..., Any],
        model: nn.Module,
        starts: Bool[Tensor, "batch pos"] | None,
    ) -> Callable[..., Any]:
        """Return `compute` with the model pushed; see the class.

        Args:
            compute: The trainer's own `compute_loss`.
            model: Whose blocks are pushed.
            starts: Where documents begin in rows that hold several.
        """

        def pushed(called: nn.Module, inputs: Any, **settings: Any) -> Any:
            ids, mask = tokens_of(inputs)
            where = self._markers.assistant_tokens(ids, starts)
            if mask is not None and mask.shape == where.shape:
                where = where & mask.bool()  # padding after a turn that was cut
            self._where, self._added = where, self._sum(ids.device)
            with _first_pass(model, self._added, where):
                return compute(called, inputs, **settings)

        return pushed

    def without(
        self, streams: dict[int, Float[Tensor, "batch pos d_model"]]
    ) -> dict[int, Float[Tensor, "batch pos d_model"]]:
        """Return captured streams without what was added below, and forget it.

        They were captured before their own layer's addition.
        """
        where, added = self._where, self._added
        self._where, self._added = None, {}
        if where is None:
            return streams
        found = {}
        for layer, stream in streams.items():
            below = [vector for i, vector in added.items() if i < layer]
            if below:
                total = torch.stack(below).sum(0).to(stream.device, stream.dtype)
                stream = stream - where.to(stream.device).unsqueeze(-1) * total
            found[layer] = stream
        return found

    def _sum(self, device: torch.device) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for term in (term for term in self._terms if term.weight):
            for layer, vector in term.additions(device).items():
                found[layer] = found[layer] + vector if layer in found else vector
        return found


@contextmanager
def _first_pass(
    model: nn.Module,
    added: dict[int, Float[Tensor, " d_model"]],
    where: Bool[Tensor, "batch pos"],
) -> Iterator[None]:
    """Add vectors to blocks' output in the first forward pass with gradients.

    Raises:
        RuntimeError: If there was none, or it had other tokens.
    """
    is_open, fired = False, set()

    def begin(_module: nn.Module, _args: Any) -> None:
        nonlocal is_open
        # Asked here: a checkpointed block may run without gradients.
        is_open = torch.is_grad_enabled() and not fired

    def end(_module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal is_open
        is_open = False

    def adding(layer: int, vector: Tensor) -> Any:
        def change(stream: Tensor) -> Tensor | None:
            if not is_open:
                return None
            _check_tokens(stream, where)
            fired.add(layer)
            here = where.to(stream.device).unsqueeze(-1)
            return stream + here * vector.to(stream.device, stream.dtype)

        return changing(change)

    blocks, decoder = decoder_layers(model), backbone(model)
    with ExitStack() as hooks:
        for handle in (
            decoder.register_forward_pre_hook(begin),
            decoder.register_forward_hook(end),
            *(blocks[i].register_forward_hook(adding(i, v)) for i, v in added.items()),
        ):
            hooks.callback(handle.remove)
        yield
    if silent := sorted(added.keys() - fired):
        raise RuntimeError(
            f"the hooks of layers {silent} must fire in the trainer's forward pass and "
            "did not, so nothing was added there. A model compiled before `attach`, or "
            "called through another object, does that: attach first, compile later"
        )


def _check_tokens(stream: Tensor, where: Tensor) -> None:
    if stream.shape[:2] != where.shape:
        raise RuntimeError(
            f"the model must read as many tokens as the batch holds, "
            f"{tuple(where.shape)}; its blocks saw {tuple(stream.shape[:2])}. Prompt "
            "tuning adds tokens of its own and can't be pushed: use LoRA"
        )
