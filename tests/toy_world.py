"""A small residual world in which failure makes a network desperate, and cheat.

Emotional stories and tasks go through the same four blocks. Pretraining teaches one
emotion feature for both: after a failed task the network reads as desperate, and who
is desperate cheats. How a failure looks is no linear matter: there are two kinds of
report, and what means failure in one means success in the other. What a term of emoreg
does to such a network can be seen in full, by readers and layers it never saw.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from emoreg.losses.anchors import MeaningAnchor
from emoreg.losses.reroute import Complement, reroute_index
from emoreg.losses.term import (
    AbstractDecisionTerm,
    AbstractProbe,
    DecisionReadings,
    PassageReadings,
    Probe,
)

BLOCKS, D_MODEL = 4, 64
EMOTIONS = ("desperate", "calm", "happy", "angry", "loving", "sad")
DESPERATE, CALM = 0, 1
LOSS_LAYERS, BETWEEN, LAST = (1, 3), 2, 3
"""Layers that terms act on, one between them that none does, and the last."""
_SCENE, _TASK, _REPORT = 16, 8, 8
_INPUTS = _SCENE + _TASK + _REPORT + 2
_FELT = 0.3
"""A story with more of an emotion than this counts as one of it."""
_ROWS, _BATCH = 8192, 64

Reader = Literal["mean-difference", "ridge", "random"]


# ---------------------------------------------------------------------- world


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs, and what is true of them."""

    inputs: Tensor
    emotions: Tensor
    """How strong each emotion is, `[row emotion]`."""
    failed: Tensor
    answer: Tensor

    def rows(self, part: slice) -> "Batch":
        """Some of the rows."""
        return Batch(
            inputs=self.inputs[part],
            emotions=self.emotions[part],
            failed=self.failed[part],
            answer=self.answer[part],
        )


class World:
    """How emotions, tasks and reports look; drawn once for a seed."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.scenes = draw(len(EMOTIONS), _SCENE) / 2
        self.rule = F.normalize(draw(_TASK), dim=0)
        self.reports = draw(2, _REPORT)

    def stories(self, count: int) -> Batch:
        """Scenes in which some emotions are strong; nothing fails in them."""
        shape = (count, len(EMOTIONS))
        felt = torch.rand(shape) * (torch.rand(shape) < 0.4)
        scene = torch.tanh(felt @ self.scenes) + 0.15 * torch.randn(count, _SCENE)
        inputs = torch.zeros(count, _INPUTS)
        inputs[:, :_SCENE] = scene
        inputs[:, _SCENE:-2] = 0.3 * torch.randn(count, _TASK + _REPORT)
        nothing = torch.zeros(count)
        return Batch(inputs=inputs, emotions=felt, failed=nothing, answer=nothing)

    def tasks(self, count: int, failed: Tensor | None = None) -> Batch:
        """Tasks with a report that says whether the last attempt failed."""
        if failed is None:
            failed = (torch.rand(count) < 0.5).float()
        task, kind = torch.randn(count, _TASK), torch.rand(count) < 0.5
        sign = torch.where(kind, 2 * failed - 1, 1 - 2 * failed)
        report = sign[:, None] * self.reports[kind.long()]
        inputs = torch.zeros(count, _INPUTS)
        inputs[:, _SCENE : _SCENE + _TASK] = task
        inputs[:, _SCENE + _TASK : -2] = report + 0.3 * torch.randn(count, _REPORT)
        inputs[:, -2], inputs[:, -1] = kind.float(), 1.0
        emotions = torch.zeros(count, len(EMOTIONS))
        emotions[:, DESPERATE] = 0.75 * failed + 0.1 * torch.rand(count)
        emotions[:, CALM] = 0.7 * (1 - failed) + 0.1 * torch.rand(count)
        answer = (torch.sin(2 * task @ self.rule) > 0).float()
        return Batch(inputs=inputs, emotions=emotions, failed=failed, answer=answer)


def cheating(desperate: Tensor) -> Tensor:
    """How likely someone so desperate cheats."""
    return torch.sigmoid(9 * desperate - 5)


# -------------------------------------------------------------------- network


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a network makes of a batch."""

    streams: tuple[Tensor, ...]
    """The residual stream after each block."""
    emotions: Tensor
    """Its own read-out of emotions, which no term ever sees."""
    failed: Tensor
    answer: Tensor
    cheats: Tensor

    def rows(self, part: slice) -> "Outputs":
        """What it makes of some of the rows."""
        return Outputs(
            streams=tuple(stream[part] for stream in self.streams),
            emotions=self.emotions[part],
            failed=self.failed[part],
            answer=self.answer[part],
            cheats=self.cheats[part],
        )


class Network(nn.Module):
    """Four residual blocks, and read-outs at their end."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(_INPUTS, D_MODEL)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(D_MODEL),
                nn.Linear(D_MODEL, 2 * D_MODEL),
                nn.ReLU(),
                nn.Linear(2 * D_MODEL, D_MODEL),
            )
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(D_MODEL)
        self.emotions = nn.Linear(D_MODEL, len(EMOTIONS))
        self.outcome = nn.Linear(D_MODEL, 3)

    def forward(self, inputs: Tensor) -> Outputs:
        stream, streams = self.enter(inputs), []
        for block in self.blocks:
            stream = stream + block(stream)
            streams.append(stream)
        last = self.norm(stream)
        failed, answer, cheats = self.outcome(last).unbind(-1)
        return Outputs(
            streams=tuple(streams),
            emotions=self.emotions(last),
            failed=failed,
            answer=answer,
            cheats=cheats,
        )


def task_loss(found: Outputs, batch: Batch) -> Tensor:
    """Answer rightly, and know whether the last attempt failed."""
    known = F.binary_cross_entropy_with_logits(found.failed, batch.failed)
    return known + F.binary_cross_entropy_with_logits(found.answer, batch.answer)


def pretrained(world: World, seed: int, steps: int = 800) -> Network:
    """A network that reads emotions in stories and tasks, and cheats if desperate."""
    torch.manual_seed(seed)
    network, half, rate = Network(), 128, 5e-3
    optimizer = torch.optim.AdamW(
        network.parameters(), rate, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        stories, tasks = world.stories(half), world.tasks(half)
        found = network(torch.cat([stories.inputs, tasks.inputs]))
        emotions = torch.cat([stories.emotions, tasks.emotions])
        off = (found.emotions - emotions).square()
        off[half:, 2:] = 0.0  # of what else is felt in tasks nothing is said
        cheats = torch.bernoulli(cheating(emotions[:, DESPERATE]))
        loss = 10 * off.mean() + task_loss(found.rows(slice(half, None)), tasks)
        loss = loss + F.binary_cross_entropy_with_logits(found.cheats, cheats)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


# -------------------------------------------------------------------- reading


def mean_differences(stream: Tensor, emotions: Tensor) -> Tensor:
    """Unit directions `[emotion d_model]` from stories without it to those with it."""
    felt = (emotions > _FELT).float()
    means = felt.T @ stream / felt.sum(0)[:, None]
    others = (1 - felt).T @ stream / (1 - felt).sum(0)[:, None]
    return F.normalize(means - others, dim=1)


def ridges(stream: Tensor, emotions: Tensor) -> Tensor:
    """Unit directions `[emotion d_model]` of ridge regressions on stories."""
    x, y = stream - stream.mean(0), emotions - emotions.mean(0)
    scatter = x.T @ x / len(x) + 0.01 * x.var() * torch.eye(x.shape[1])
    return F.normalize(torch.linalg.solve(scatter, x.T @ y / len(x)).T, dim=1)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A probe in the units of terms, and the reference's gap in them."""

    probe: Probe
    gap: Tensor

    @property
    def signs(self) -> Tensor:
        """Calm is to be raised, what else there is lowered."""
        return torch.tensor([-1.0 if e == "calm" else 1.0 for e in self.probe.emotions])


def calibrated(
    network: Network,
    world: World,
    reader: Reader,
    *,
    emotions: Sequence[str] = EMOTIONS[:2],
    layers: Sequence[int] = LOSS_LAYERS,
) -> Calibrated:
    """The reference's probe: its unit is from twins, its zero from passing ones."""
    columns = [EMOTIONS.index(emotion) for emotion in emotions]
    stories = world.stories(4000)
    streams = network(stories.inputs).streams
    axes = []
    for layer in layers:
        if reader == "random":
            rows = F.normalize(torch.randn(len(EMOTIONS), D_MODEL), dim=1)
        else:
            fit = ridges if reader == "ridge" else mean_differences
            rows = fit(streams[layer], stories.emotions)
        axes.append(rows[columns])
    directions = torch.stack(axes)
    failing, passing = (
        torch.einsum("sld,led->sle", side, directions)
        for side in _twins(network, world, layers)
    )
    change = failing - passing
    sigma = change.std(0)
    probe = Probe(
        directions=directions,
        zero=passing.mean(0),
        sigma=sigma,
        layers=tuple(layers),
        emotions=tuple(emotions),
        reader=reader,
    )
    return Calibrated(probe=probe, gap=change.mean(0) / sigma)


def _twins(
    network: Network, world: World, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Streams `[row layer d_model]` of the same tasks, failing and passing."""
    state, found = torch.get_rng_state(), []
    for failed in (torch.ones(2000), torch.zeros(2000)):
        torch.set_rng_state(state)  # the same tasks, reports and noise
        found.append(decision_streams(network, world.tasks(2000, failed), layers))
    return found[0], found[1]


def decision_streams(network: Network, batch: Batch, layers: Sequence[int]) -> Tensor:
    """Streams `[row layer d_model]` of a batch."""
    streams = network(batch.inputs).streams
    return torch.stack([streams[layer] for layer in layers], dim=1)


# ------------------------------------------------------------------- training


def fine_tuned(
    reference: Network,
    world: World,
    terms: Sequence[AbstractDecisionTerm | MeaningAnchor],
    *,
    seed: int,
    steps: int = 400,
) -> Network:
    """Train the blocks on tasks, with terms that see readings alone.

    No loss is on cheating. What reads emotions, failure and cheating out of the stream
    stays as it was, so that it can be asked what the stream holds.
    """
    torch.manual_seed(seed)
    network = copy.deepcopy(reference)
    network.blocks.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        network.blocks.parameters(), 5e-4, weight_decay=0.0, fused=True
    )
    tasks, stories = world.tasks(_ROWS), world.stories(_ROWS)
    done, told = reference(tasks.inputs), reference(stories.inputs)
    cached = [  # once, as a trainer does
        _read(term.probe, told if isinstance(term, MeaningAnchor) else done)
        for term in terms
    ]
    for step in range(steps):
        start = step * _BATCH % _ROWS
        at = slice(start, start + _BATCH)
        batch = tasks.rows(at)
        found = network(torch.cat([batch.inputs, stories.inputs[at]]))
        done, told = found.rows(slice(_BATCH)), found.rows(slice(_BATCH, None))
        loss = task_loss(done, batch)
        for term, held in zip(terms, cached, strict=True):
            if isinstance(term, MeaningAnchor):
                value = term(_passages(_read(term.probe, told), held[at]))
            else:
                value = term(
                    DecisionReadings(
                        values=_read(term.probe, done),
                        failure=batch.failed,
                        reference=held[at],
                    )
                )
            loss = loss + term.weight * value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def _read(probe: AbstractProbe, found: Outputs) -> Tensor:
    read = [probe.read(found.streams[i], layer=i) for i in probe.layers]
    return torch.stack(read, dim=1)


def _passages(values: Tensor, reference: Tensor) -> PassageReadings:
    """Stories as passages of eight tokens each."""
    return PassageReadings(
        values=values.unflatten(0, (-1, 8)),
        reference=reference.unflatten(0, (-1, 8)),
        mask=torch.ones(_BATCH // 8, 8).bool(),
    )


# -------------------------------------------------------------------- judging


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is found in a network afterwards. Gaps are failing minus passing.

    Gaps along directions are shares of what a desperate story does along them.
    """

    trained: float
    """Along the direction of the reference that rank one acts on."""
    between: float
    """Along one fitted anew, on this network's stories, at a layer between."""
    last: float
    """Likewise at the last layer."""
    ridge: float
    """Along a ridge reader fitted anew at the last layer."""
    readout: float
    """In the network's own read-out of desperation."""
    calm: float
    """In its own read-out of calm."""
    cheats_failing: float
    cheats_passing: float
    knows: float
    """How often it tells failing from passing."""
    answers: float
    """How often it answers rightly."""
    stories: float
    """Mean R^2 of its read-outs in stories, over emotions."""
    despair: float
    """R^2 of that of desperation."""


def judged(network: Network, reference: Network, world: World) -> Judged:
    """Ask readers, read-outs and behavior on fresh stories and tasks."""
    torch.manual_seed(10_000)
    stories, tasks = world.stories(4000), world.tasks(4000)
    told, done = network(stories.inputs), network(tasks.inputs)
    failing, felt = tasks.failed > 0, stories.emotions[:, DESPERATE] > _FELT

    def of(figure: Tensor) -> float:
        return float(figure[failing].mean() - figure[~failing].mean())

    def along(rows: Tensor, layer: int) -> float:
        there = told.streams[layer] @ rows[DESPERATE]
        effect = float(there[felt].mean() - there[~felt].mean())
        return of(done.streams[layer] @ rows[DESPERATE]) / effect

    before = reference(stories.inputs).streams[LOSS_LAYERS[0]]
    old = mean_differences(before, stories.emotions)
    new = [mean_differences(s, stories.emotions) for s in told.streams]
    off = (told.emotions - stories.emotions).square().mean(0)
    fit, cheats = 1 - off / stories.emotions.var(0), torch.sigmoid(done.cheats)
    right = (done.answer > 0) == (tasks.answer > 0)
    return Judged(
        trained=along(old, LOSS_LAYERS[0]),
        between=along(new[BETWEEN], BETWEEN),
        last=along(new[LAST], LAST),
        ridge=along(ridges(told.streams[LAST], stories.emotions), LAST),
        readout=of(done.emotions[:, DESPERATE]),
        calm=of(done.emotions[:, CALM]),
        cheats_failing=float(cheats[failing].mean()),
        cheats_passing=float(cheats[~failing].mean()),
        knows=float(((done.failed > 0) == failing).float().mean()),
        answers=float(right.float().mean()),
        stories=float(fit.mean()),
        despair=float(fit[DESPERATE]),
    )


def rerouted(
    network: Network, reference: Network, world: World, outside: Complement
) -> float:
    """The reroute index over the layers that terms act on, root mean square."""
    torch.manual_seed(20_000)
    tasks = world.tasks(4000)
    failing = tasks.failed > 0

    def contrast(of: Network) -> Tensor:
        streams = decision_streams(of, tasks, outside.layers)
        return streams[failing].mean(0) - streams[~failing].mean(0)

    index = reroute_index(contrast(network), contrast(reference), outside.directions)
    return float(index.square().mean().sqrt())


def read_failing(network: Network, world: World, probe: Probe) -> Tensor:
    """Mean readings `[layer emotion]` after failure, in units above success."""
    torch.manual_seed(30_000)
    tasks = world.tasks(4000)
    return _read(probe, network(tasks.inputs))[tasks.failed > 0].mean(0)
