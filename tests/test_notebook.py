"""The page's figures as plotly figures: the same numbers, colours of the palette."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from comparison_tables import EMOTIONS, FAMILIES, synthetic

from emoreg.comparison.compare import compare
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.curves import arm_label
from emoreg.comparison.palette import DARK, DRAWN, LIGHT, TEXT, arm_styles
from emoreg.comparison.plane import plane_of
from emoreg.vectors.emotion_vectors import EmotionVectors

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased", "<i>odd</i>")
GIVEN: dict[str, Any] = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 12}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(
        synthetic(**GIVEN),
        synthetic(scale=0.4, seed=1, **GIVEN),
        arms={"control": synthetic(seed=2, **GIVEN)},
        roles=FAMILIES,
        n_resamples=200,
        training={"after": [{"step": k, "loss": 1.0 / k} for k in (1, 2, 3)]},
    )


def test_slopes_are_the_comparison_s(comparison: Comparison) -> None:
    figure = comparison.plot_slopes("desperate")
    own = comparison.decision
    reader, column = own.readers.index("logistic"), own.targets.index("desperate")
    drawn = {trace.name: trace for trace in figure.data}
    for arm in ("before", "control", "after"):
        slope, line = own.arms[arm].slope, drawn[arm_label(arm)]
        middle = slope.estimate[reader, :, column]
        np.testing.assert_allclose(line.y, middle, rtol=1e-3)
        above = (slope.high - slope.estimate)[reader, :, column]
        np.testing.assert_allclose(line.error_y.array, above, rtol=1e-3)
    other = comparison.plot_slopes("desperate", "lda")
    assert list(other.data[0].y) != list(figure.data[0].y)


def test_every_section_has_its_method(comparison: Comparison) -> None:
    figures = [
        comparison.plot_distributions("calm"),
        comparison.plot_rounds("desperate"),
        comparison.plot_shifts("desperate"),
        comparison.plot_shifts("desperate", "control"),
        comparison.plot_changes(),
        comparison.plot_changes("control"),
        comparison.plot_training("loss"),
    ]
    titles = [figure.layout.title.text for figure in figures]
    assert titles[:4] == [
        "calm",
        "desperate",
        "desperate, after minus before",
        "desperate, after minus control",
    ]
    assert all(figure.data for figure in figures)


def test_a_figure_alone_says_what_is_drawn(comparison: Comparison) -> None:
    arms = [arm_label(arm) for arm in ("before", "control", "after")]
    for figure, named in (
        (comparison.plot_slopes("desperate"), arms),
        (comparison.plot_rounds("desperate"), arms),
        (comparison.plot_distributions("desperate"), ["passing", "failing"]),
        (comparison.plot_training("loss"), [arm_label("after")]),
    ):
        assert figure.layout.showlegend
        assert [trace.name for trace in figure.data if trace.showlegend] == named
    title = comparison.plot_slopes("desperate").layout.yaxis.title.text
    assert title == "failing minus passing, σ<sub>ref</sub>"


def test_the_plane_is_drawn_where_there_is_one(comparison: Comparison) -> None:
    with pytest.raises(ValueError, match="plane are of, found nothing"):
        comparison.plot_plane()
    places = np.random.default_rng(0).normal(size=(40, len(EMOTIONS)))
    directions = (places / np.linalg.norm(places, axis=0)).T[None].astype(np.float32)
    vectors = EmotionVectors.from_directions(
        torch.from_numpy(directions), emotions=list(EMOTIONS), layers=[21]
    )
    plane = plane_of(vectors, [21])
    assert plane is not None
    tables = [synthetic(seed=seed, n_prompts=8) for seed in (0, 1)]
    reader = {"reader": tables[0].readers[0]}
    described = {**plane.described(), **reader}
    tables = [replace(t, meta={**t.meta, "plane": described}) for t in tables]
    found = compare(tables[0], tables[1], roles=FAMILIES, n_resamples=100)
    assert found.plot_plane().data


def test_no_colour_is_left_a_name(comparison: Comparison) -> None:
    text = comparison.plot_distributions("desperate").to_json()
    assert LIGHT["fail"] in text
    assert not re.search(r'"@[a-z0-9]+(/[0-9.]+)?"', text)


def test_what_is_not_there_is_refused_with_what_is(comparison: Comparison) -> None:
    with pytest.raises(ValueError, match=r"one of .*calm; .*found 'clam'") as raised:
        comparison.plot_distributions("clam")
    assert "plot_distributions" in str(raised.value)
    with pytest.raises(ValueError, match="behavior are of, found nothing"):
        comparison.plot_behavior("failing")
    with pytest.raises(ValueError, match="conduct are of, found nothing"):
        comparison.plot_conduct("impossible")


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_their_ground(palette: dict[str, str]) -> None:
    for ground in ("bg", "panel"):
        for name in TEXT:
            assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
        for name in DRAWN:
            assert contrast(palette[name], palette[ground]) >= 3, (name, ground)


def test_arms_are_told_apart_without_colour() -> None:
    styles = arm_styles(("before", "after", "control", *"abcdef")).values()
    assert {style.colour for style in styles} <= set(DRAWN)
    for how in ("symbol", "marker", "path", "dash"):
        assert len({getattr(style, how) for style in styles}) == 9


def test_the_contrast_check_can_fail() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#a9a8a2", LIGHT["bg"]) < 3
    assert LIGHT.keys() == DARK.keys()
