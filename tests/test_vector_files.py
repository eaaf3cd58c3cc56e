"""Vectors as things to combine, compare and share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from emoreg.validation.agreement import agreement
from emoreg.vectors import hub
from emoreg.vectors.emotion_vectors import EmotionVectors

NAMES, LAYERS, WIDTH = ("calm", "desperate", "sad"), (1, 3), 12


def made(seed: int = 0, names: tuple[str, ...] = NAMES) -> EmotionVectors:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(len(LAYERS), len(names), WIDTH, generator=generator)
    return EmotionVectors.from_directions(directions, emotions=names, layers=LAYERS)


# -- combining ----------------------------------------------------------------


def test_differences_are_in_the_models_own_units() -> None:
    directions = torch.randn(2, 3, WIDTH)
    vectors = EmotionVectors.from_directions(directions, emotions=NAMES, layers=LAYERS)
    torch.testing.assert_close(vectors["sad"].values, directions[:, 2])
    found = 2 * (vectors["calm"] - vectors["desperate"]) + -vectors["sad"]
    wanted = 2 * (directions[:, 0] - directions[:, 1]) - directions[:, 2]
    torch.testing.assert_close(found.values, wanted)
    assert found.name == "2 calm - desperate + -sad"
    one = vectors["calm"].cosine(vectors["calm"])
    torch.testing.assert_close(one, torch.ones(2))


def test_a_combination_reads_as_its_parts_do() -> None:
    vectors = made()
    both = vectors["calm"] - vectors["desperate"]
    combined = EmotionVectors.of(both)
    x = torch.randn(5, WIDTH)
    parts = x @ (vectors["calm"].values - vectors["desperate"].values)[1]
    read = combined.project(x, layer=3)[:, 0] * combined.raw_norm[1, 0]
    torch.testing.assert_close(read, parts)
    assert combined.emotions == ("calm - desperate",)


def test_what_does_not_fit_is_refused() -> None:
    vectors = made()
    other = EmotionVectors.from_directions(
        torch.randn(1, 1, WIDTH), emotions=("calm",), layers=(1,)
    )
    with pytest.raises(ValueError, match="the same layers and width"):
        _ = vectors["calm"] - other["calm"]
    with pytest.raises(ValueError, match="must be one of"):
        _ = vectors["clam"]
    with pytest.raises(ValueError, match="non-zero"):
        EmotionVectors.of(vectors["calm"] - vectors["calm"])
    with pytest.raises(ValueError, match="a direction or more"):
        EmotionVectors.of()


def test_a_layer_by_its_share_of_depth() -> None:
    vectors = made()
    with pytest.raises(ValueError, match="must know its model's depth"):
        vectors.layer_at(0.5)
    vectors.provenance["num_layers"] = 4
    assert [vectors.layer_at(share) for share in (0.0, 0.4, 0.7, 1.0)] == [1, 1, 3, 3]
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        vectors.layer_at(1.5)


# -- comparing ----------------------------------------------------------------


def test_agreement_is_cosines_and_scipys_angles() -> None:
    one, other = made(0), made(1, ("sad", "proud", "calm"))
    found = agreement(one, other)
    assert found.emotions == ("calm", "sad")
    for row, layer in enumerate(found.layers):
        a = torch.stack([one.direction(e, layer=layer) for e in found.emotions])
        b = torch.stack([other.direction(e, layer=layer) for e in found.emotions])
        np.testing.assert_allclose(found.cosines[row], (a * b).sum(-1), rtol=1e-5)
        wanted = subspace_angles(a.T.numpy(), b.T.numpy())
        np.testing.assert_allclose(found.angles[row], wanted, atol=1e-5)
    assert "layer 3: cosine" in str(found)


def test_vectors_agree_with_themselves_and_their_turned_span() -> None:
    one = made()
    same = agreement(one, one)
    np.testing.assert_allclose(same.cosines, 1, rtol=1e-5)
    np.testing.assert_allclose(same.angles, 0, atol=1e-3)
    # The same plane, other vectors in it: cosines tell, angles rightly do not.
    a, b = one["calm"], one["desperate"]
    plane = EmotionVectors.of(a, b)
    turned = EmotionVectors.from_directions(
        torch.stack([(a + b).values, (a - b).values], dim=1),
        emotions=plane.emotions,
        layers=LAYERS,
    )
    found = agreement(plane, turned)
    np.testing.assert_allclose(found.angles, 0, atol=1e-3)
    assert found.cosines.max() < 0.99


def test_nothing_shared_is_refused() -> None:
    wide = EmotionVectors.from_directions(
        torch.randn(2, 1, 5), emotions=("calm",), layers=LAYERS
    )
    with pytest.raises(ValueError, match="one width"):
        agreement(made(), wide)
    with pytest.raises(ValueError, match="share an emotion"):
        agreement(made(), made(0, ("proud", "glad", "x")))


# -- sharing ------------------------------------------------------------------


def test_a_folder_holds_vectors_and_their_card(tmp_path: Path) -> None:
    vectors = made()
    vectors.provenance.update({"model": "someone/model", "stories": 24})
    folder = hub.save_pretrained(vectors, tmp_path / "mine")
    assert hub.from_pretrained(folder).hash == vectors.hash
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# Emotion vectors of someone/model" in card
    assert "base_model: someone/model" in card
    assert "- Stories fitted on: 24" in card
    assert "None: run `emoreg validate`" in card
    summary = {
        "checks": {"doses": "missed"},
        "emotions": {"calm": True, "sad": False},
        "layers": [3],
    }
    card = hub.card(vectors.with_validation(summary))
    assert "- doses: missed" in card
    assert "- Not to use: sad" in card


def test_a_repository_that_can_not_be_reached_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="a hub repository that can be reached"):
        hub.from_pretrained("nobody/nothing-of-the-kind")
