"""Mediation: what a patched reading does to margins, against plain forwards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
from behavior_cases import twin
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.behavior.mediation import CONDITIONS, Mediation, mediation
from emoreg.residual.layers import decoder_layers
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.reference import Reference
from emoreg.training.success_patches import success_patches
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

Build = Callable[[], PreTrainedModel]
TWINS = [twin(name) for name in ("a", "bb", "ccc")]


@pytest.fixture
def made(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
) -> Mediation:
    return mediation(model(), tokenizer, TWINS, vectors, reference, quiet=True)


def plain(
    network: Any, tokenizer: Any, messages: list[dict[str, str]], reply: str
) -> float:
    """The mean log-probability of a reply, by one whole forward pass."""
    before = conversation_ids(tokenizer, messages)
    opening = TurnMarkers.of(tokenizer).opening
    spoken = tokenizer(reply, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*before, *opening, *spoken]])
    with torch.no_grad():
        logits = network(ids).logits[0, -len(spoken) - 1 : -1].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(spoken)[:, None]).mean())


def test_margins_are_those_of_plain_passes(
    made: Mediation, model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    network = model()
    for place, one in enumerate(TWINS):
        for name, version in (("failing", "fail"), ("passing", "pass")):
            said = list(one.conversation(version).messages[:-1])  # pyright: ignore
            honest, corner = (
                plain(network, tokenizer, said, reply)
                for reply in (one.reply_fail, one.reply_bad)
            )
            assert made.margins[name][place] == pytest.approx(honest - corner, abs=1e-4)
    assert np.abs(made.margins["failing"] - made.margins["passing"]).min() > 1e-4


def test_a_patch_by_hand_gives_the_same(
    made: Mediation,
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
) -> None:
    network, markers = model(), TurnMarkers.of(tokenizer)
    patches = success_patches(vectors, reference, Corpus.packaged().roles())
    assert {*patches} == {cases.LOSS_LAYER}
    patch = patches[cases.LOSS_LAYER]
    current: list[torch.Tensor] = []

    def note(_module: Any, args: tuple) -> None:
        current[:] = [args[0]]

    def hook(_module: Any, _args: tuple, output: Any) -> Any:
        stream = output if isinstance(output, torch.Tensor) else output[0]
        at = markers.decision_tokens(current[0])[0].nonzero().flatten()
        moved = stream.clone()
        coordinates = moved[0, at] @ patch.basis.T
        moved[0, at] += (patch.goal - coordinates) @ patch.basis
        return moved if isinstance(output, torch.Tensor) else (moved, *output[1:])

    network.register_forward_pre_hook(note)
    decoder_layers(network)[cases.LOSS_LAYER].register_forward_hook(hook)
    said = list(TWINS[1].conversation("fail").messages[:-1])
    honest, corner = (
        plain(network, tokenizer, said, reply)
        for reply in (TWINS[1].reply_fail, TWINS[1].reply_bad)
    )
    assert made.margins["patched"][1] == pytest.approx(honest - corner, abs=1e-4)
    assert abs(made.margins["patched"][1] - made.margins["failing"][1]) > 1e-4
    assert abs(made.margins["patched"][1] - made.margins["placebo"][1]) > 1e-4


def test_effects_are_means_of_differences_and_survive_the_file(
    made: Mediation, tmp_path: Path
) -> None:
    again = Mediation.load(made.save(tmp_path / "mediation.parquet"))
    for found in (made, again):
        for name, effect in (
            ("passing", found.total),
            ("patched", found.indirect),
            ("placebo", found.placebo),
        ):
            change = found.margins[name] - found.margins["failing"]
            assert effect.estimate == pytest.approx(float(change.mean()))
        beyond = found.indirect.estimate - found.placebo.estimate
        assert found.beyond_placebo.estimate == pytest.approx(beyond)
    assert again.meta["reference_hash"] == made.meta["reference_hash"]
    assert set(again.margins) == set(CONDITIONS)


def test_a_planted_effect_is_covered_and_none_is_not_found() -> None:
    draw = np.random.default_rng(0)
    level = draw.normal(size=80)
    base = {name: level + 0.2 * draw.normal(size=80) for name in CONDITIONS}
    names = tuple(map(str, range(80)))
    none = Mediation(prompts=names, margins=base)
    assert not none.beyond_placebo.excludes(0.0)
    moved = replace(none, margins={**base, "patched": base["patched"] + 0.3})
    assert moved.indirect.low < 0.3 < moved.indirect.high
    assert moved.beyond_placebo.excludes(0.0)


def test_too_few_twins_are_refused(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
) -> None:
    with pytest.raises(ValueError, match="at least 3 twins"):
        mediation(model(), tokenizer, TWINS[:2], vectors, reference, quiet=True)
