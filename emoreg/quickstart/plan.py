"""How much of everything a quickstart uses, and what it will cost."""

import time
from dataclasses import dataclass

from torch import nn

from emoreg.residual.batches import read_stream
from emoreg.residual.layers import num_layers
from emoreg.training.reference import as_conversations
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.transcripts import Conversation, every

# Mean tokens of a packaged dialogue on the demo model, by rounds of feedback.
_DIALOGUE_TOKENS = {1: 370, 2: 530, None: 680}
_STORY_TOKENS, _NEUTRAL_TOKENS, _STAKES_TOKENS = 168, 17_000, 47_000
_TRAINED_TOKEN = 3.5
"""What a trained token costs in forward tokens, where freed memory is kept
(scripts/setup_env.sh); half as much again where it is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much of everything a run uses; which items that is, is fixed."""

    emotions: tuple[str, ...]
    rounds: int | None
    """Rounds of feedback that are measured; None is all."""
    train_rounds: int | None
    train_twins: int | None
    """The shortest so many twins, evenly over styles; None is all."""
    calibrate_every: int
    """Every so-many-th training task of each style gives units."""
    test_every: int
    """Every so-many-th test task of each style is measured."""
    stakes: bool
    """Also the test twins with stakes, five rounds each."""
    steps: int
    passages: int
    """Stories, and neutral passages, that the anchors hold."""
    guard_limit: int | None
    """At most so many texts of each kind, and emotions, for the guard rails."""
    dev_gate: bool
    """Measure `dev` too, which decides where ratios may be given."""
    keep: float = 0.0
    """Share of the failure contrast that the terms leave where they act. All of it is
    asked for: what held-out readers lose is about half of that (docs/log.md)."""
    arms: tuple[str, ...] = ("after", "control")
    """What is trained: with the terms, without any, with the anchors alone."""

    def calibration_prompts(self, corpus: Corpus) -> list[Conversation]:
        """Return the training twins that units are measured on."""
        twins = every(corpus.transcripts("train"), self.calibrate_every)
        return as_conversations(twins, self.rounds)

    def test_prompts(self, corpus: Corpus) -> list[Conversation]:
        """Return the held-out twins, in the files' order."""
        plain = every(corpus.transcripts("test"), self.test_every)
        prompts = as_conversations(plain, self.rounds)
        if self.stakes:
            prompts += as_conversations(corpus.transcripts("test", stakes=True))
        return prompts

    def forward_tokens(self, *, cached: bool) -> float:
        """Return the tokens the run costs, roughly; trained ones count more."""
        stories = 12 * _STORY_TOKENS * len(self.emotions) + _NEUTRAL_TOKENS
        dialogue = _DIALOGUE_TOKENS[self.rounds]
        calibration = 128 / self.calibrate_every * dialogue
        tested = 128 / self.test_every * dialogue + _STAKES_TOKENS * self.stakes
        guards = 2_500 * (self.guard_limit or 48)
        row = _DIALOGUE_TOKENS[self.train_rounds]
        trained = 2 * self.steps * row * _TRAINED_TOKEN
        # With terms, every fourth step four stories and every fourth two texts.
        beside = self.steps / 4 * (4 * _STORY_TOKENS + 2 * row) * _TRAINED_TOKEN
        anchored = sum(arm != "control" for arm in self.arms)
        dev = 24_000 if self.dev_gate else 0
        # Readings and predictions of the anchors' texts, and of the training rows.
        rows = min(128, 2 * (self.train_twins or 64))
        held = self.passages * (350 + row) + rows * row
        once = calibration + dev + (0 if cached else stories)
        arms = len(self.arms) * trained + anchored * (beside + held)
        return once + (1 + len(self.arms)) * (tested + guards) + arms


def quick_plan(corpus: Corpus) -> Plan:
    """Return the plan that is small enough to wait for."""
    roles = corpus.roles()
    families = [name for names in roles.families.values() for name in names]
    return Plan(
        emotions=tuple(dict.fromkeys((*roles.core, *families))),
        rounds=2,
        train_rounds=1,
        train_twins=40,
        calibrate_every=4,
        test_every=2,
        stakes=False,
        steps=40,
        passages=8,
        guard_limit=4,
        dev_gate=False,
    )


def full_plan(corpus: Corpus) -> Plan:
    """Return the plan that figures are judged on: whole splits, more steps."""
    return Plan(
        emotions=quick_plan(corpus).emotions,
        rounds=None,
        train_rounds=None,
        train_twins=None,
        calibrate_every=1,
        test_every=1,
        stakes=True,
        steps=64,
        passages=48,
        guard_limit=None,
        dev_gate=True,
        arms=("after", "control", "anchors"),
    )


def tokens_per_second(model: nn.Module, seconds: float = 2.0) -> float:
    """Return the forward speed without the head, measured for about `seconds`."""
    last, sequences = num_layers(model) - 1, [[11] * 160 for _ in range(8)]
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or done == 0:
        read_stream(model, sequences, [last], lambda *_: None, quiet=True)
        done += sum(map(len, sequences))
    return done / spent
