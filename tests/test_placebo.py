"""Random directions: the same everywhere, in units of their own, in no verdict."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch

from emoreg.comparison.curves import _is_curve
from emoreg.comparison.measure import measure
from emoreg.losses.presets import decouple
from emoreg.losses.term import probe_of
from emoreg.training.attach import attach
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.random_directions import random_directions

TABLES = ("sigma_ref", "success_level", "success_std", "gap")


def all_random(vectors: EmotionVectors) -> dict[tuple[int, str], torch.Tensor]:
    return {
        (layer, emotion): vectors.direction(emotion, layer=layer, reader="random")
        for layer in vectors.layers
        for emotion in vectors.emotions
    }


def older(reference: Reference) -> Reference:
    """A reference as an earlier version wrote it, without random directions."""
    kept = {name: getattr(reference, name)[:-1] for name in TABLES}
    return replace(reference, readers=reference.readers[:-1], **kept)


# -- the directions --------------------------------------------------------------------


def test_they_depend_on_width_layer_and_name_alone(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    whole = all_random(vectors)
    saved = EmotionVectors.load(vectors.save(tmp_path / "v.safetensors"))
    other = EmotionVectors.from_directions(
        torch.randn(2, 3, 32), emotions=("calm", "x", "upset"), layers=(3, 1)
    )
    for made in (saved, vectors.subset(["upset", "calm"]), other):
        found = all_random(made)
        shared = found.keys() & whole.keys()
        assert len(shared) >= 4
        for place in shared:
            assert torch.equal(found[place], whole[place])
    flat = torch.stack(list(whole.values()))
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(len(flat)))
    assert len({row.numpy().tobytes() for row in flat}) == len(whole)  # control
    assert "random" not in vectors.readers


def test_they_are_drawn_evenly_from_all_directions() -> None:
    names = tuple(map(str, range(400)))
    drawn = random_directions(64, 3, names).numpy() * 8
    moments = [float(np.mean(drawn**power)) for power in (1, 2, 4)]
    assert moments == pytest.approx([0.0, 1.0, 3 * 64 / 66], abs=0.06)
    overlap = np.abs(drawn @ drawn.T / 64 - np.eye(400))
    assert overlap.mean() == pytest.approx(np.sqrt(2 / np.pi / 64), rel=0.05)
    cube = np.sign(drawn)  # control: these are unit directions too, in few places
    assert float(np.mean(cube**4)) != pytest.approx(3 * 64 / 66, abs=0.06)


def test_they_never_change() -> None:
    """Units that were stored with a reference hold for these numbers alone."""
    first = random_directions(8, 18, ("desperate",))[0]
    wanted = [-0.0171006, 0.1906635, 0.5744476, -0.2949294]
    wanted += [-0.3027376, 0.6557567, -0.1362097, 0.0784965]
    torch.testing.assert_close(first, torch.tensor(wanted), rtol=0, atol=1e-6)


def test_they_are_read_as_others_are(vectors: EmotionVectors) -> None:
    x = 3 * torch.randn(6, 32)
    units = vectors.unit_directions(layer=2, reader="random")
    wanted = (x - vectors.centre[vectors.layer_index(2)]) @ units.T
    torch.testing.assert_close(vectors.project(x, layer=2, reader="random"), wanted)
    cosine = vectors.cosine(x, layer=2, reader="random")
    torch.testing.assert_close(cosine, wanted / x.norm(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="got 'random', which has directions alone"):
        vectors.scores(x, layer=2, reader="random")
    with pytest.raises(ValueError, match=r"must be one of.*got 'rndom'$"):
        vectors.project(x, layer=2, reader="rndom")
    with pytest.raises(ValueError, match="`readers` must not hold 'random'"):
        replace(vectors, readers=("lda", "random"))


# -- units -----------------------------------------------------------------------------


def test_a_reference_without_their_units_loads_and_says_what_to_do(
    vectors: EmotionVectors, reference: Reference, tmp_path: Path
) -> None:
    loaded = Reference.load(older(reference).save(tmp_path / "old.safetensors"))
    at: dict[str, Any] = {"layers": (2,), "emotions": ("calm",)}
    assert loaded.unit("gap", reader="lda", **at).shape == (1, 1)
    with pytest.raises(ValueError, match=r"got 'random'. All vectors have it: calib"):
        loaded.unit("gap", reader="random", **at)
    with pytest.raises(ValueError, match="calibrate again"):
        decouple(vectors, loaded, readers=("random",))
    assert reference.unit("gap", reader="random", **at).shape == (1, 1)  # control


# -- the placebo arm -------------------------------------------------------------------


def test_a_placebo_is_the_same_terms_in_units_of_its_own(
    vectors: EmotionVectors, reference: Reference
) -> None:
    placebo = list(decouple(vectors, reference, readers=("random",)))
    real = list(decouple(vectors, reference, readers=("lda",)))
    names = [term.name for term in placebo]
    assert names == ["contrast-random", "band", "meaning", "kl"]
    for own, other in zip(placebo[:3], real[:3], strict=True):
        assert (own.weight, type(own)) == (other.weight, type(other))
        probe: Any = own.probe  # type: ignore[attr-defined]
        there: Any = other.probe  # type: ignore[attr-defined]
        assert (probe.layers, probe.emotions) == (there.layers, there.emotions)
        at = {"layers": probe.layers, "emotions": probe.emotions, "reader": "random"}
        wanted = probe_of(
            vectors,
            **at,
            success_level=reference.unit("success_level", **at),
            sigma=reference.unit("sigma_ref", **at),
        )
        for name in ("directions", "zero", "sigma"):
            assert torch.equal(getattr(probe, name), getattr(wanted, name))
            assert not torch.allclose(getattr(probe, name), getattr(there, name))


def test_a_placebo_is_asked_for_by_name_and_alone(
    vectors: EmotionVectors, reference: Reference
) -> None:
    default = decouple(vectors, reference)
    readers = {term.name for term in default if term.name.startswith("contrast")}
    assert readers == {"contrast-lda", "contrast-mean-difference"}
    with pytest.raises(ValueError, match="a placebo must act on random directions al"):
        decouple(vectors, reference, readers=("lda", "random"))


def test_a_trainer_takes_a_placebo_and_no_mixture(
    vectors: EmotionVectors,
    reference: Reference,
    model: Any,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    placebo = decouple(vectors, reference, readers=("random",), meaning=0.0, kl=0.0)
    real = decouple(vectors, reference, readers=("lda",), meaning=0.0, kl=0.0)

    def attached(terms: Any) -> Any:
        trainer = cases.make_sft(model(), tokenizer, tmp_path, max_steps=1)
        return attach(trainer, terms=terms, outcome="failed", reference=reference)

    with pytest.raises(ValueError, match="a placebo must act on random directions al"):
        attached([*placebo, *real])
    trainer = attached(placebo)
    start = cases.weights(trainer)
    trainer.train()
    assert cases.logged(trainer)[0]["emotion_loss/contrast-random"] > 0
    assert not cases.equal(start, cases.weights(trainer))


# -- verdicts --------------------------------------------------------------------------


def test_no_table_and_no_curve_of_a_report_has_them(
    vectors: EmotionVectors, reference: Reference, model: Any, tokenizer: Any
) -> None:
    talks = cases.twins(2)
    found = measure(model(), tokenizer, talks, vectors, reference=reference, quiet=True)
    assert found.readers == vectors.readers
    units = found.meta["units"]
    for name in ("sigma_ref", "success_level", "success_std"):
        assert np.shape(units[name]) == found.values.shape[1:]
        assert units[name] == getattr(reference, name)[:-1].tolist()
    assert len(reference.readers) == len(found.readers) + 1  # control
    assert _is_curve("emotion/calm/L2/lda/fail")
    assert not _is_curve("emotion/calm/L2/random/fail")
