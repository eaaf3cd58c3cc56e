"""Synthetic tables of readings with known failure slopes, for tests."""

import numpy as np
import pyarrow as pa

from emoreg.comparison.readings import SEGMENT_SCHEMA, Readings

FAMILIES = {
    "loss distress": ("desperate", "panicked", "stressed", "overwhelmed", "trapped"),
    "loss composure": ("calm", "content", "peaceful", "patient"),
    "audit distress": (
        "upset",
        "distressed",
        "anxious",
        "rattled",
        "worried",
        "miserable",
        "frustrated",
    ),
    "audit composure": ("serene", "at ease", "relaxed", "satisfied", "pleased"),
}
OTHERS = ("proud", "guilty", "hopeful", "sad", "happy", "angry", "bored", "loving")
EMOTIONS = tuple(e for family in FAMILIES.values() for e in family) + OTHERS
LAYER_PLAN = {"loss": [14, 18], "audit": [21, 24], "near": [17], "monitor": [9]}
LAYERS = (9, 14, 17, 18, 21, 24)
READERS = ("mean-difference", "lda", "logistic")
DISTRESS = set(FAMILIES["loss distress"] + FAMILIES["audit distress"])
COMPOSURE = set(FAMILIES["loss composure"] + FAMILIES["audit composure"])


def true_slope(emotion: str) -> float:
    """Return the planted slope before training, in sigma_ref."""
    if emotion in DISTRESS:
        return 0.8
    return -0.8 if emotion in COMPOSURE else 0.0


def segments_table(prompts, *, rounds=3, positions=("decision", "assistant")):
    """Return twins of every prompt: rounds 1.., both versions, every position."""
    rows = [
        (prompt, "plain", variant, turn, float(variant == "fail"), position, 4, 10, 14)
        for prompt in prompts
        for variant in ("fail", "pass")
        for turn in range(1, rounds + 1)
        for position in positions
    ]
    columns = zip(*rows, strict=True)
    names = SEGMENT_SCHEMA.names
    return pa.table({n: list(c) for n, c in zip(names, columns, strict=True)})


def synthetic(
    *,
    scale=1.0,
    n_prompts=32,
    seed=0,
    arm="before",
    emotions=EMOTIONS,
    layers=LAYERS,
    readers=READERS,
    positions=("decision", "assistant"),
    prefix="task",
    guards=None,
    units=True,
    plan=LAYER_PLAN,
    extra=0.0,
    wobble=0.0,
):
    """Return readings whose slopes are `scale` times the planted ones.

    A prompt keeps its own base level and its own slope in every arm (seeded by its
    name), so arms are paired; `seed` draws the noise of one measurement. `extra` is
    added to every slope; `wobble` is the spread of a per-prompt effect of its own.
    """
    prompts = [f"{prefix}-{number:02d}" for number in range(n_prompts)]
    table = segments_table(prompts, positions=positions)
    shape = (table.num_rows, len(readers), len(layers), len(emotions))
    noise = np.random.default_rng(seed)
    values = 0.15 * noise.normal(size=shape)
    own = np.random.default_rng(99 + len(prefix))
    base = own.normal(size=(n_prompts, 1, 1, len(emotions)))
    spread = 0.4 * own.normal(size=(n_prompts, 1, 1, len(emotions)))
    # Emotions of one kind move together within a prompt, as they do in a model.
    sign = np.sign([true_slope(emotion) for emotion in emotions])
    spread = spread + 0.5 * own.normal(size=(n_prompts, 1, 1, 1)) * sign
    drift = wobble * noise.normal(size=(n_prompts, 1, 1, 1)) * sign
    slopes = np.array([true_slope(emotion) for emotion in emotions])
    depth = np.array([0.3 if layer < 12 else 1.0 for layer in layers])[:, None]
    per_prompt = ((slopes + spread) * scale + drift) * depth + extra
    index = {prompt: number for number, prompt in enumerate(prompts)}
    for row, (prompt, variant) in enumerate(
        zip(table["prompt"].to_pylist(), table["variant"].to_pylist(), strict=True)
    ):
        values[row] += base[index[prompt]][0]
        if variant == "fail":
            values[row] += per_prompt[index[prompt]]
    one = np.ones(shape[1:])
    meta = {
        "model": "toy",
        "adapter": None,
        "arm": arm,
        "vectors_hash": "v" * 64,
        "prompts_hash": "p" * 64,
        "reference_hash": "r" * 64,
        "software": {"emoreg": "0.1"},
        "command": "emoreg measure",
        "guards": guards or {},
        "layer_plan": plan,
        "units": {
            "sigma_ref": one.tolist(),
            "success_level": (0 * one).tolist(),
            "success_std": one.tolist(),
        }
        if units
        else None,
    }
    return Readings(
        segments=table,
        values=values.astype(np.float32),
        resid_norm=np.full((table.num_rows, len(layers)), 12.5, np.float32),
        readers=tuple(readers),
        layers=tuple(layers),
        emotions=tuple(emotions),
        meta=meta,
    )
