"""Static figures of a comparison, for pages without scripts, slides and papers."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from emoreg.comparison.changes import Changes
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.curves import (
    TRAINING_PANELS,
    VERSIONS,
    arm_label,
    arm_order,
    heats,
    samples,
    short,
    slope_ranges,
    training_panels,
)
from emoreg.comparison.moves import Move
from emoreg.comparison.palette import LIGHT, ArmStyle, arm_styles
from emoreg.comparison.plane import Plane
from emoreg.comparison.plane_page import FIRST, axis_titles, plane_view
from emoreg.comparison.shifts import shift_limits

_VERSION_STYLE = {"failing": (LIGHT["fail"], "-"), "passing": (LIGHT["pass"], "--")}
_INK, _MUTED, _GRID = LIGHT["ink"], LIGHT["muted"], LIGHT["line"]
_COLUMNS = 3
_POINTS = 250
"""Prompts drawn as points below a distribution; of more, each is a stroke."""
_METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
}
"""What each format would say of itself: nothing, so that equal figures are equal."""


def draw(comparison: Comparison) -> dict[str, bytes]:
    """Return PNG and SVG files by name: distributions, slopes, changes, shifts, ..."""
    from matplotlib import rc_context

    with rc_context(_style()):
        figures = {"changes": _changes(comparison)}
        if comparison.headline_targets:
            figures["distributions"] = _distributions(comparison)
            figures["slopes"] = _slopes(comparison)
        if comparison.changes and comparison.changes[0].shifted:
            figures["shifts"] = _shifts(comparison.changes[0])
        if comparison.plane is not None:
            figures["plane"] = _plane(comparison, comparison.plane)
        if training_panels(comparison):
            figures["training"] = _training(comparison)
        return {
            f"{name}.{kind}": _written(figure, kind)
            for name, figure in figures.items()
            for kind in _METADATA
        }


def _style() -> dict[Any, Any]:
    return {
        "font.family": "sans-serif",
        "font.size": 8.5,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": _INK,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "figure.facecolor": "white",
        # Names are data: a dollar sign in one must not start a formula.
        "text.parse_math": False,
        "svg.hashsalt": "emoreg",
    }


def _panels(count: int, *, height: float) -> tuple[Any, list[Any]]:
    """Return a figure on the non-interactive canvas and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-count // _COLUMNS)
    figure = Figure(figsize=(10.5, height * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, list(axes[:count])


def _written(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130, metadata=_METADATA[kind])
    figure.set_layout_engine("none")  # laid out once for all formats
    return buffer.getvalue()


def _distributions(comparison: Comparison) -> Any:
    order = arm_order(comparison.arms)
    figure, axes = _panels(
        len(comparison.headline_targets), height=0.55 + 0.62 * len(order)
    )
    found = samples(comparison)
    for axis, (target, drawn) in zip(axes, found.items(), strict=True):
        tallest = max(float(sample.density.max()) for sample in drawn.values())
        for floor, arm in enumerate(reversed(order)):
            for version in VERSIONS:
                _ridge(axis, drawn[arm, version], floor, tallest, version)
        axis.set_title(short(target, 32))
        axis.set_yticks(range(len(order)), [short(arm) for arm in reversed(order)])
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("σ_ref above success")
    _version_key(figure)
    return figure


def _ridge(axis: Any, sample: Any, floor: int, tallest: float, version: str) -> None:
    colour, dash = _VERSION_STYLE[version]
    height = floor + 0.72 * sample.density / tallest
    shade = 0.22 if version == "failing" else 0.1
    axis.fill_between(sample.grid, floor, height, color=colour, alpha=shade, lw=0)
    axis.plot(sample.grid, height, color=colour, ls=dash, lw=1.4)
    depth = floor - (0.08 if version == "failing" else 0.17)
    if len(sample.values) > _POINTS:
        # As many as overlap: strokes, all of them one line with gaps.
        ends = np.array([depth - 0.03, depth + 0.03, np.nan])
        strokes = np.repeat(sample.values, 3), np.tile(ends, len(sample.values))
        axis.plot(*strokes, color=colour, lw=0.4, alpha=0.6)
        return
    marker, fill = ("o", colour) if version == "failing" else ("D", "none")
    heights = np.full(len(sample.values), depth)
    axis.plot(sample.values, heights, marker, ms=2.45, mfc=fill, mec=colour, mew=0.6)


def _slopes(comparison: Comparison) -> Any:
    figures = comparison.decision
    order = arm_order(comparison.arms)
    reader = figures.readers.index(comparison.audit_reader)
    figure, axes = _panels(len(comparison.headline_targets), height=2.1)
    places = np.arange(len(figures.places))
    ranges = slope_ranges(figures, comparison.audit_reader, comparison.headline_targets)
    for axis, target in zip(axes, comparison.headline_targets, strict=True):
        column = figures.targets.index(target)
        _bands(axis, comparison)
        axis.axhline(0, color=_MUTED, lw=0.7)
        for number, (arm, style) in enumerate(arm_styles(order).items()):
            slope = figures.arms[arm].slope
            middle = slope.estimate[reader, :, column]
            shift = places + 0.16 * (number - (len(order) - 1) / 2)
            ends = slope.low[reader, :, column], slope.high[reader, :, column]
            axis.vlines(shift, *ends, color=LIGHT[style.colour], lw=1)
            axis.plot(shift, middle, marker=style.marker, ms=3.5, **_line(style, 1.2))
        axis.set_title(short(target, 32))
        axis.set_xticks(places, figures.places)
        axis.set_ylim(ranges[target])
        axis.set_xlabel("layer")
    axes[0].set_ylabel("failure slope, σ_ref")
    _arm_key(figure, arm_styles(order))
    return figure


def _bands(axis: Any, comparison: Comparison) -> None:
    """Shade the layers the loss acted on and those the audit reads."""
    for group, colour in (("loss", "lossband"), ("audit", "auditband")):
        layers = comparison.layer_plan.get(group, ())
        if len(layers) < len(comparison.layers):
            for layer in layers:
                at = comparison.layers.index(layer)
                axis.axvspan(at - 0.5, at + 0.5, color=LIGHT[colour], lw=0)


def _changes(comparison: Comparison) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    maps = heats(comparison)
    rows = len(maps[0].emotions)
    figure = Figure(figsize=(10.5, 0.15 * rows + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    ends = [LIGHT[name] for name in ("cold", "mid", "warm")]
    colours = LinearSegmentedColormap.from_list("", ends)
    largest = max(float(np.abs(heat.values).max()) for heat in maps) or 1.0
    for axis, heat in zip(axes, maps, strict=True):
        image = axis.imshow(
            heat.values, cmap=colours, vmin=-largest, vmax=largest, aspect="auto"
        )
        axis.set_title(f"Change of the failure slope, {heat.title}")
        axis.set_xticks(range(len(heat.layers)), [str(n) for n in heat.layers])
        axis.set_yticks(
            range(rows), [short(emotion) for emotion in heat.emotions], fontsize=7
        )
        axis.tick_params(length=0)
        axis.set_xlabel("layer")
    figure.colorbar(image, ax=list(axes), shrink=0.4, label="σ_ref")
    return figure


def _shifts(changes: Changes) -> Any:
    figure, axes = _panels(len(changes.shifted), height=2.2)
    for column, (axis, target) in enumerate(zip(axes, changes.shifted, strict=True)):
        axis.axhline(0, color=_MUTED, lw=0.7)
        for side, shift in changes.shifts.items():
            colour, dash = _VERSION_STYLE[side]
            place, middle = shift.first[:, column], shift.shift[:, column]
            band = shift.low[:, column], shift.high[:, column]
            shade = 0.22 if side == "failing" else 0.1
            axis.fill_between(place, *band, color=colour, alpha=shade, lw=0)
            axis.plot(place, middle, color=colour, ls=dash, lw=1.4, marker=".")
        axis.set_title(short(target, 32))
        axis.set_ylim(shift_limits(changes))
        axis.set_xlabel(f"decile {short(changes.against)}, σ_ref above success")
    axes[0].set_ylabel("shift, σ_ref")
    _version_key(figure)
    return figure


def _plane(comparison: Comparison, plane: Plane) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis: Any = figure.subplots()
    view = plane_view(comparison, plane)
    axis.axhline(0, color=_MUTED, lw=0.7)
    axis.axvline(0, color=_MUTED, lw=0.7)
    axis.scatter(*view.emotions.T, s=7, color=_MUTED, alpha=0.45, lw=0)
    for row, left in view.labels:
        name = plane.emotions[row]
        colour = _INK if name in FIRST else _MUTED
        axis.scatter(*view.emotions[row], s=14, color=colour, lw=0)
        axis.annotate(
            short(name),
            view.emotions[row],
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            color=colour,
            fontsize=8,
        )
    styles = arm_styles(arm_order(comparison.arms))
    for move in view.moves:
        _arrow(axis, move, styles)
    axis.set_aspect("equal")
    axis.set_xlim(-view.reach, view.reach)
    axis.set_ylim(-view.reach, view.reach)
    across, up = axis_titles(plane)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.set_title("σ_ref; filled after failing, open after passing feedback")
    _arm_key(figure, styles)
    return figure


def _arrow(axis: Any, move: Move, styles: Mapping[str, ArmStyle]) -> None:
    """Draw where a version lay, where it lies in an arm, and what is sure of that."""
    places = []
    for arm, ends in (("before", move.start), (move.arm, move.head)):
        colour, marker = LIGHT[styles[arm].colour], styles[arm].marker
        x, y = ends
        fill = colour if move.version == "failing" else "white"
        how = {"marker": marker, "ms": 7, "color": colour, "mfc": fill, "mew": 1.5}
        axis.plot(x.estimate, y.estimate, zorder=3, ls="", **how)
        places.append((x.estimate, y.estimate))
        if arm != "before":
            axis.hlines(y.estimate, x.low, x.high, color=colour, lw=1)
            axis.vlines(x.estimate, y.low, y.high, color=colour, lw=1)
            arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 5, "shrinkB": 5}
            axis.annotate("", places[1], xytext=places[0], arrowprops=arrow)


def _training(comparison: Comparison) -> Any:
    panels = training_panels(comparison)[:TRAINING_PANELS]
    figure, axes = _panels(len(panels), height=1.8)
    trained = comparison.training or {}
    styles = arm_styles((*comparison.arms, *trained))
    for axis, panel in zip(axes, panels, strict=True):
        for arm, (steps, values) in panel.lines.items():
            axis.plot(steps, values, **_line(styles[arm], 1.4))
        axis.set_title(short(panel.key, 44), fontsize=8)
        axis.set_xlabel("step")
    _arm_key(figure, {arm: styles[arm] for arm in trained})
    return figure


def _line(style: ArmStyle, width: float) -> dict[str, Any]:
    dash = (0, style.dash) if style.dash else "-"
    return {"color": LIGHT[style.colour], "ls": dash, "lw": width}


def _arm_key(figure: Any, styles: Mapping[str, ArmStyle]) -> None:
    names = [short(arm_label(arm), 28) for arm in styles]
    lines = [{**_line(s, 1.5), "marker": s.marker} for s in styles.values()]
    _key(figure, names, lines)


def _version_key(figure: Any) -> None:
    lines = [{"color": colour, "ls": dash} for colour, dash in _VERSION_STYLE.values()]
    _key(figure, list(_VERSION_STYLE), lines)


def _key(figure: Any, names: list[str], lines: list[dict[str, Any]]) -> None:
    """Name every line once, below the panels, in as many rows as it takes."""
    from matplotlib.lines import Line2D

    for columns in range(len(names), 0, -1):
        key = figure.legend(
            [Line2D([], [], ms=4.5, **line) for line in lines],
            names,
            loc="outside lower left",
            ncols=columns,
            handlelength=3.4,
            frameon=False,
        )
        if columns == 1 or key.get_window_extent().width < figure.bbox.width:
            return
        key.remove()
