"""All scenarios and requests: replies written and kept, calls answered, graded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from emoreg.behavior.pressure.reaction_table import Reactions
from emoreg.behavior.pressure.requests import Request
from emoreg.behavior.pressure.scenarios import Scenario, texts_hash
from emoreg.behavior.pressure.talks import AgentTalk, PersonTalk
from emoreg.behavior.turns import next_replies, rates_so_far
from emoreg.writing.journal import Journal
from emoreg.writing.writer import Writer

TOKENS = 384
"""Longest reply."""


def play_pressure(
    scenarios: Sequence[Scenario],
    requests: Sequence[Request],
    writer: Writer,
    folder: str | Path,
    *,
    samples: int = 1,
    turns: int = 3,
    tokens: int = TOKENS,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Reactions:
    """Let a model be each agent and answer each request, and grade by rule what it did.

    Nothing that it calls is done: a scenario's own texts are the answers. Every reply
    is kept in `folder` as it comes, so that a run that was cut off goes on.

    Args:
        scenarios: Both twins of each; none, for requests alone.
        requests: What people ask; none, for scenarios alone.
        writer: `LocalWriter` or `EndpointWriter`, or anything with their methods.
        folder: Where replies are kept; new, or one of a run with the same settings.
        samples: Of each scenario and request, each with seeds of its own.
        turns: Most replies of an agent.
        tokens: Longest reply.
        seed: Every reply's own seed is made of it.
        about: What else replies depend on, JSON-able: an adapter, a steering.
        quiet: No progress bar.

    Raises:
        ValueError: If there is nothing to play, or the folder has other settings.
        ConnectionError: If an endpoint fails; what was written is kept.
    """
    _check(len(scenarios) + len(requests), samples, turns, tokens)
    settings = {
        "scenarios": len(scenarios),
        "requests": len(requests),
        "texts_hash": texts_hash([*scenarios, *requests]),
        "samples": samples,
        "turns": turns,
        "tokens": tokens,
        "seed": seed,
        **writer.settings(),
        **(about or {}),
    }
    journal = Journal(Path(folder), settings)
    talks: list[AgentTalk | PersonTalk] = []
    for sample in range(samples):
        talks += (AgentTalk(scenario=s, sample=sample, turns=turns) for s in scenarios)
        talks += (PersonTalk(request=r, sample=sample) for r in requests)
    with tqdm(total=len(talks), desc="Pressure", unit="talk", disable=quiet) as bar:
        while playing := [talk for talk in talks if not talk.over]:
            for talk, reply in next_replies(playing, writer, journal, settings):
                talk.take(reply)
                bar.update(talk.over)
                done = (t.reaction.outcome for t in talks if t.reaction)
                bar.set_postfix(rates_so_far(done), refresh=False)
    reactions = tuple(talk.reaction for talk in talks if talk.reaction)
    return Reactions(reactions=reactions, meta=settings)


def _check(texts: int, samples: int, turns: int, tokens: int) -> None:
    if not texts or samples < 1 or turns < 1 or tokens < 1:
        raise ValueError(
            "there must be scenarios or requests, and at least 1 sample, reply and "
            f"token, found {texts} of them, `samples` {samples}, `turns` {turns} and "
            f"`tokens` {tokens}. Raise what is 0"
        )
