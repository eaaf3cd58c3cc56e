"""The plane of the emotion vectors, and how states move on it, against plain numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from comparison_tables import EMOTIONS, FAMILIES, LAYERS, synthetic

from emoreg.comparison.compare import compare
from emoreg.comparison.plane import FEWEST, KNOWN, Plane, plane_of
from emoreg.comparison.plane_page import plane_section, plane_view
from emoreg.comparison.plots import draw
from emoreg.comparison.report import render
from emoreg.vectors.emotion_vectors import EmotionVectors

WORDS = tuple(word for group in KNOWN.values() for word in group)


def vectors_of(rows, emotions, *, centre=None):
    """Vectors of one layer with the given directions as rows."""
    made = EmotionVectors.from_directions(
        torch.as_tensor(rows, dtype=torch.float32)[None], emotions=emotions, layers=(3,)
    )
    return made if centre is None else replace(made, centre=centre)


def plane_from(rows, emotions=WORDS):
    found = plane_of(vectors_of(rows, emotions), [3])
    assert found is not None
    return found


def circumplex(*, valence=3.0, arousal=2.0, noise=0.3, width=40, seed=0):
    """Directions that hold a planted valence and arousal, and noise."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    signs = [
        ((1 if pole == "pleasant" else -1), (1 if level == "aroused" else -1))
        for (pole, level), group in KNOWN.items()
        for _ in group
    ]
    planted = np.array(signs, float) * (valence, arousal)
    return planted @ axes + noise * rng.normal(size=(len(WORDS), width)), axes


def brute(rows):
    """Coordinates, shares and axes by the eigenvectors of the covariance."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centred = units - units.mean(0)
    sizes, axes = np.linalg.eigh(centred.T @ centred)
    order = np.argsort(sizes)[::-1]
    return centred @ axes[:, order[:2]], sizes[order] / sizes.sum(), axes[:, order[:2]]


def same_but_for_signs(found, wanted):
    signs = np.sign((found * wanted).sum(0))
    np.testing.assert_allclose(found, wanted * signs, atol=1e-5)
    return signs


def test_coordinates_are_the_first_two_principal_components():
    rows, _ = circumplex()
    plane = plane_from(rows)
    wanted, shares, _ = brute(rows)
    same_but_for_signs(plane.coordinates, wanted)
    np.testing.assert_allclose(plane.shares, shares[:2], rtol=1e-5)
    assert plane.components == (1, 2)


def test_a_planted_circumplex_is_named_and_turned_towards_known_words():
    for seed in range(8):  # the decomposition's own signs differ between seeds
        rows, _ = circumplex(seed=seed)
        plane = plane_from(rows)
        assert plane.names == ("valence", "arousal")
        at = dict(zip(plane.emotions, plane.coordinates, strict=True))
        assert at["calm"][0] > 0 > at["gloomy"][0]
        assert at["furious"][1] > 0 > at["serene"][1]


def test_an_axis_that_orders_both_leaves_the_other_its_name():
    """Four groups along a diagonal: the first axis orders valence and arousal."""
    places = {
        ("pleasant", "aroused"): (3.0, 0.0),
        ("pleasant", "quiet"): (0.5, -1.5),
        ("unpleasant", "aroused"): (-0.5, 1.5),
        ("unpleasant", "quiet"): (-3.0, 0.0),
    }
    planted = [places[key] for key, group in KNOWN.items() for _ in group]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        axes = np.linalg.qr(rng.normal(size=(40, 2)))[0].T
        rows = np.array(planted) @ axes + 0.05 * rng.normal(size=(len(WORDS), 40))
        plane = plane_from(rows)
        assert set(plane.names) == {"valence", "arousal"}
        for place, name in enumerate(plane.names):
            assert plane.order[name][place] > 0.9


def test_arousal_stands_up_where_it_is_the_first_component():
    rows, _ = circumplex(valence=2.0, arousal=3.0)
    plane = plane_from(rows)
    assert plane.names == ("valence", "arousal")
    assert plane.components == (2, 1)
    assert plane.shares[1] > plane.shares[0]


def test_components_that_order_nothing_have_no_name():
    rng = np.random.default_rng(0)
    for _ in range(20):  # the negative control: the same words, no plan
        rows = rng.normal(size=(len(WORDS), 40))
        assert plane_from(rows).names == ("", "")
    # Arousal that shows among pleasant words alone is no arousal.
    rows, axes = circumplex(arousal=0.0)
    half = [k for k, word in enumerate(WORDS) if word in KNOWN["pleasant", "aroused"]]
    rows[half] += 3.0 * axes[1]
    assert "arousal" not in plane_from(rows).names


def test_other_words_leave_axes_without_names_but_with_fixed_signs():
    rows, _ = circumplex()
    others = tuple(f"e{k}" for k in range(len(WORDS)))
    plane, again = (plane_from(x, others) for x in (rows, rows.copy()))
    assert plane.names == ("", "")
    np.testing.assert_array_equal(plane.coordinates, again.coordinates)
    longest = np.abs(plane.coordinates).argmax(0)
    assert (plane.coordinates[longest, [0, 1]] > 0).all()


def test_a_states_position_is_its_own_share_along_both_axes():
    rows, _ = circumplex()
    centre = torch.randn(1, 40)
    vectors = vectors_of(rows, WORDS, centre=centre)
    plane = plane_from(rows)
    states = torch.randn(5, 40)
    found = plane.positions(vectors.project(states, layer=3).double().numpy())
    coordinates, _, axes = brute(rows)
    signs = same_but_for_signs(plane.coordinates, coordinates)
    wanted = (states - centre).double().numpy() @ axes * signs
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    # and by least squares, as the docstring has it
    p = vectors.project(states, layer=3).double().numpy()
    design = np.column_stack([plane.coordinates, np.ones(len(WORDS))])
    solved = np.linalg.lstsq(design, p.T, rcond=None)[0][:2].T
    np.testing.assert_allclose(found, solved, atol=1e-6)
    assert not np.allclose(found, p[:, :2], atol=0.1)  # it is no mere reading


def test_few_emotions_or_foreign_layers_have_no_plane():
    rows, _ = circumplex()
    few = vectors_of(rows[: FEWEST - 1], WORDS[: FEWEST - 1])
    assert plane_of(few, [3]) is None
    assert plane_of(vectors_of(rows, WORDS), [4]) is None


def test_a_plane_comes_back_from_a_tables_meta():
    rows, _ = circumplex()
    plane = plane_from(rows)
    back = Plane.restored(plane.described())
    np.testing.assert_allclose(back.coordinates, plane.coordinates, atol=1e-5)
    assert back.names == plane.names
    assert back.order == {k: tuple(v) for k, v in plane.described()["order"].items()}


# -- moves -----------------------------------------------------------------------------


def plane_here(layer=21):
    """A plane of the synthetic tables' emotions, from directions of no meaning."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(len(EMOTIONS), 30))
    return replace(plane_from(rows, EMOTIONS), layer=layer)


def with_plane(table, plane):
    return replace(table, meta={**table.meta, "plane": plane.described()})


@pytest.fixture(scope="module")
def tables():
    return synthetic(n_prompts=12), synthetic(n_prompts=12, scale=0.3, seed=1)


@pytest.fixture(scope="module")
def comparison(tables):
    before, after = (with_plane(table, plane_here()) for table in tables)
    control = with_plane(synthetic(n_prompts=12, seed=2), plane_here())
    arms = {"control": control}
    return compare(before, after, arms=arms, roles=FAMILIES, n_resamples=300)


def mean_projection(table, variant):
    """The mean over prompts of a version's decision tokens, by brute force."""
    rows = [
        k
        for k, row in enumerate(table.segments.to_pylist())
        if row["variant"] == variant and row["position"] == "decision"
    ]
    at = table.readers.index("mean-difference"), LAYERS.index(21)
    return table.values[rows][:, *at].astype(np.float64).mean(0)


def test_arrows_lead_from_mean_to_mean(comparison, tables):
    coordinates = plane_here().coordinates
    for arm, table in zip(("before", "after"), tables, strict=True):
        for version in ("failing", "passing"):
            mean = mean_projection(table, version[:4])
            solved = np.linalg.lstsq(coordinates, mean - mean.mean(), rcond=None)[0]
            move = next(
                m for m in comparison.moves if (m.arm, m.version) == ("after", version)
            )
            ends = move.start if arm == "before" else move.head
            found = [axis.estimate for axis in ends]
            np.testing.assert_allclose(found, solved, atol=1e-3)
    kinds = {(m.arm, m.version) for m in comparison.moves}
    assert len(kinds) == len(comparison.moves) == 4


def test_failing_moves_and_a_control_does_not(comparison):
    moves = {(m.arm, m.version): m for m in comparison.moves}
    far = moves["after", "failing"].change
    still = moves["control", "failing"].change
    assert any(axis.excludes(0.0) for axis in far)
    assert max(abs(a.estimate) for a in still) < max(abs(a.estimate) for a in far) / 3
    for move in moves.values():
        for axis, change in zip(move.head, move.change, strict=True):
            assert axis.low <= axis.estimate <= axis.high
            assert axis.high - axis.low == pytest.approx(change.high - change.low)


def test_tables_without_a_plane_have_no_moves_and_no_error(tables):
    found = compare(*tables, roles=FAMILIES, n_resamples=200)
    assert found.plane is None
    assert found.moves == ()
    assert found.to_dict()["plane"] is None


# -- the page --------------------------------------------------------------------------


def test_the_page_shows_an_arrow_for_each_move(comparison):
    section, charts = plane_section(comparison)
    assert section is not None
    layout = charts["plane"]["layout"]
    drawn = {(a["ax"], a["ay"], a["x"], a["y"]) for a in layout["annotations"]}
    wanted = {
        tuple(axis.estimate for axis in (*move.start, *move.head))
        for move in comparison.moves
    }
    assert drawn == wanted
    assert layout["yaxis"]["scaleanchor"] == "x"
    page = render(comparison)
    assert 'id="h-plane"' in page
    held = round(100 * sum(comparison.plane.shares))
    assert f"They hold {held} %" in page
    assert "Neither follows valence or arousal" in page


def test_a_page_without_a_plane_has_no_such_section(comparison):
    bare = replace(comparison, plane=None, moves=())
    assert plane_section(bare) == (None, {})


def test_names_of_emotions_are_text(comparison):
    hostile = "<img src=x onerror=alert(1)>"
    plane = replace(comparison.plane, emotions=(hostile, *EMOTIONS[1:]))
    _, charts = plane_section(replace(comparison, plane=plane))
    assert hostile not in str(charts)
    assert "&lt;img" in str(charts)


def test_labels_do_not_meet_and_name_desperate_and_calm(comparison):
    view = plane_view(comparison, comparison.plane)
    names = [EMOTIONS[row] for row, _ in view.labels]
    assert names[:2] == ["desperate", "calm"]
    assert len(names) > 4
    scale = 360 / (2 * view.reach)
    spans = []
    for row, left in view.labels:
        x, y = scale * view.emotions[row]
        width = 6 * len(EMOTIONS[row])
        spans.append((x - width if left else x, x if left else x + width, y - 7, y + 7))
    for k, (x0, x1, y0, y1) in enumerate(spans[2:], start=2):
        for a0, a1, b0, b1 in spans[:k]:
            assert x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0
    assert np.abs(view.emotions).max() <= view.reach


def test_the_picture_is_drawn_without_a_browser(comparison):
    found = draw(comparison)
    assert found["plane.png"].startswith(b"\x89PNG")
    assert b"<svg" in found["plane.svg"]
