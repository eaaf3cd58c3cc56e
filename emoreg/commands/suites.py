"""The suites of `emoreg behave`: what each needs, runs, says and saves."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from emoreg.commands.shared import load, say
from emoreg.commands.writers import writer_of

FEWEST_TASKS = 2
"""Pairs of tasks that an interval needs."""


class Session:
    """What all suites of one command share; the model is loaded once, when needed."""

    def __init__(
        self, options: argparse.Namespace, vectors: Any, strengths: Mapping[str, float]
    ) -> None:
        """Load nothing yet."""
        self.options, self.vectors, self.strengths = options, vectors, strengths

    @cached_property
    def loaded(self) -> Any:
        """The model that the options name, with its adapter."""
        return load(self.options)

    @cached_property
    def steering(self) -> Any:
        """What is added to the residual stream; None if nothing."""
        if not self.strengths:
            return None
        from emoreg.behavior.dose import Steering

        parts = (self.loaded.model, self.loaded.tokenizer)
        return Steering.of(*parts, self.vectors, self.strengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A suite: its texts, which are read before a model is, and its run."""

    texts: Callable[[argparse.Namespace], Any]
    run: Callable[[Session, Any, Path], Path]
    keeps: bool
    """Whether it keeps replies on the way, which go when its table is there."""


def corner_cutting_twins(options: argparse.Namespace) -> list[Any]:
    """Return the twins that `--prompts` names, cut to `--limit`.

    Raises:
        ValueError: If there are fewer than three, which have no interval.
    """
    from emoreg.behavior.preferences import FEWEST
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.records import read_records
    from emoreg.vectors.texts import TWIN_FIELDS, transcript_from

    _check_limit(options.limit, FEWEST)
    if options.prompts.endswith(".jsonl"):
        file = Path(options.prompts)
        records = read_records(file, file.parent, required=TWIN_FIELDS)
        twins = [transcript_from(record) for record in records]
    else:
        twins = list(Corpus.packaged().transcripts(options.prompts))
    if len(twins) < FEWEST:
        raise ValueError(
            f"`--prompts` must name at least {FEWEST} twins, as intervals are over "
            f"prompts, found {len(twins)}. Add some, or use a packaged split"
        )
    return twins[: options.limit]


def interval_text(interval: Any) -> str:
    """Return an estimate with its bounds, for a line of results."""
    return f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _corner_cutting(session: Session, twins: Any, out: Path) -> Path:
    """Score replies, say the margins by version and round, and save the table."""
    from dataclasses import replace

    from emoreg.behavior.corner_cutting import corner_cutting

    if session.options.endpoint:
        raise ValueError(
            "`--suite corner-cutting` must have the model in this process, as it asks "
            "for likelihoods, found `--endpoint`. Name `--suite impossible-code`"
        )
    loaded, steering = session.loaded, session.steering
    found = corner_cutting(
        loaded.model,
        loaded.tokenizer,
        twins,
        additions=steering and steering.additions,
        quiet=session.options.quiet,
    )
    strengths = dict(steering.strengths) if steering else {}
    found = replace(found, meta={**found.meta, "strengths": strengths})
    path = found.save(out)
    for variant in found.variants:
        name = {"fail": "failing", "pass": "passing"}[variant]
        for number in (*found.rounds, None):
            when = "all rounds" if number is None else f"round {number}"
            margin = found.mean(variant=variant, round=number)
            say(f"margin {name}, {when}: {interval_text(margin)} nat per token")
    say(f"{len(found.prompts)} twins; above zero the honest reply is the likelier")
    return path


def impossible_tasks(options: argparse.Namespace) -> list[Any]:
    """Return the tasks that `--tasks` names, `--limit` pairs of them, kind by kind."""
    from emoreg.behavior.impossible.tasks import load_tasks

    _check_limit(options.limit, FEWEST_TASKS)
    tasks = load_tasks(options.tasks)
    of_kind: dict[str, list[str]] = {}
    for task in tasks:
        names = of_kind.setdefault(task.kind, [])
        if task.id not in names:
            names.append(task.id)
    places = {
        name: (place, kind)
        for kind, names in enumerate(of_kind.values())
        for place, name in enumerate(names)
    }
    chosen = sorted(places, key=lambda name: places[name])[: options.limit]
    if len(chosen) < FEWEST_TASKS:
        raise ValueError(
            f"`--tasks` must name at least {FEWEST_TASKS} pairs, as intervals are over "
            f"tasks, found {len(chosen)}. Add some"
        )
    return [task for task in tasks if task.id in chosen]


def _impossible_code(session: Session, tasks: Any, out: Path) -> Path:
    """Play the tasks, say the rates by twin, and save table and conversations."""
    found = played(session, tasks, _parts(out))
    path, talks = save_episodes(found, out)
    say_rates(found)
    say(f"{len(found)} episodes; to read their decision tokens: {talks}")
    return path


def played(
    session: Session, tasks: Any, parts: Path, about: Mapping[str, Any] | None = None
) -> Any:
    """Play the tasks as the options say, and return the episodes.

    `about` is what replies depend on besides the options; `parts` keeps them.
    """
    from emoreg.behavior.impossible.episodes import play
    from emoreg.behavior.impossible.tasks import check_tasks

    options = session.options
    with task_sandbox(options) as sandbox:
        if options.tasks:  # before the model loads
            check_tasks(tasks, sandbox, quiet=options.quiet)
        how = _how(session, "impossible-code")
        how["about"] |= about or {}
        with _writing(session) as writer:
            return play(tasks, writer, sandbox, parts, attempts=options.attempts, **how)


def task_sandbox(options: argparse.Namespace) -> Any:
    """Return where the code of impossible tasks is run."""
    from emoreg.behavior.sandbox.limits import Limits
    from emoreg.behavior.sandbox.sandbox import Sandbox

    return Sandbox(limits=Limits(seconds=2.0), allow_weak=options.allow_weak_sandbox)


def save_episodes(found: Any, out: Path) -> tuple[Path, Path]:
    """Write the table, and what was said as `emoreg measure --prompts` takes it."""
    from emoreg.vectors.whole_files import write_whole

    path, talks = found.save(out), out.with_name(f"{out.stem}.conversations.jsonl")
    lines = (json.dumps(asdict(t), ensure_ascii=False) for t in found.conversations())
    write_whole(talks, "".join(f"{line}\n" for line in lines).encode())
    return path, talks


def _pressure_texts(options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Return scenarios and requests of the split that `--prompts` names, or own ones.

    `--limit` is of pairs of scenarios, and of requests of each kind. With one's own
    scenarios there are no requests.
    """
    from emoreg.behavior.pressure.requests import load_requests
    from emoreg.behavior.pressure.scenarios import load_scenarios
    from emoreg.vectors.records import choose

    _check_limit(options.limit, FEWEST_TASKS)
    if options.scenarios:
        scenarios, requests = load_scenarios(options.scenarios), ()
    else:
        # A file of twins is another suite's, and says nothing of a split.
        named = "test" if options.prompts.endswith(".jsonl") else options.prompts
        split = choose(named, ("dev", "test"), parameter="--prompts")
        scenarios, requests = load_scenarios(split=split), load_requests(split=split)
    pairs = list(dict.fromkeys(scenario.id for scenario in scenarios))[: options.limit]
    if len(pairs) < FEWEST_TASKS:
        raise ValueError(
            f"`--scenarios` must name at least {FEWEST_TASKS} pairs, as intervals are "
            f"over scenarios, found {len(pairs)}. Add some"
        )
    of_kind: dict[str, list[Any]] = {}
    for request in requests:
        of_kind.setdefault(request.setting, []).append(request)
    asked = [r for kind in of_kind.values() for r in kind[: options.limit]]
    return [scenario for scenario in scenarios if scenario.id in pairs], asked


def _pressure(session: Session, texts: Any, out: Path) -> Path:
    """Play scenarios and requests, say the rates by setting, and save the table."""
    from emoreg.behavior.pressure.play import play_pressure

    scenarios, requests = texts
    with _writing(session) as writer:
        found = play_pressure(
            scenarios,
            requests,
            writer,
            _parts(out),
            turns=session.options.attempts,
            **_how(session, "pressure"),
        )
    path = found.save(out)
    _say_reactions(found)
    say(f"{len(found)} conversations; rules on words miss what is said in others")
    return path


def parts_of(options: argparse.Namespace, out: Path) -> Path:
    """Return the folder that keeps a run's parts, refusing one that is there unasked.

    Raises:
        ValueError: If it holds what a run has left that was cut off, and no `--resume`.
    """
    parts = _parts(out)
    if any(parts.glob("*")) and not options.resume:
        raise ValueError(
            f"`--out` must be new, found what a run that was cut off left in {parts}. "
            "Go on with --resume, or delete that folder"
        )
    return parts


def clear(outs: Iterable[Path]) -> None:
    """Take a run's parts away, now that all of its tables are there."""
    for out in outs:
        shutil.rmtree(_parts(out), ignore_errors=True)


def _parts(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


@contextmanager
def _writing(session: Session) -> Iterator[Any]:
    """Yield who writes, its model pushed as the options say."""
    from emoreg.residual.steer import steered

    writer, steering = (
        writer_of(session.options, lambda: session.loaded),
        session.steering,
    )
    if steering is None:
        yield writer
        return
    with steered(session.loaded.model, steering.additions):
        yield writer


def _how(session: Session, suite: str) -> dict[str, Any]:
    """Return the settings that all suites which write have in common."""
    options = session.options
    return {
        "samples": options.samples,
        "tokens": options.tokens,
        "seed": options.seed,
        "about": _about(session, suite),
        "quiet": options.quiet,
    }


def _about(session: Session, suite: str) -> dict[str, Any]:
    """Return what replies depend on besides the writer's settings."""
    from emoreg.behavior.provenance import model_meta

    about: dict[str, Any] = {"suite": suite, "strengths": dict(session.strengths)}
    if session.steering is not None:
        about["vectors_hash"] = session.vectors.hash
        about["layers"] = sorted(session.steering.additions)
    if session.options.endpoint:
        return about
    return {**about, **model_meta(session.loaded.model)}


def say_rates(found: Any) -> None:
    """Say what the episodes of each twin came to, with intervals."""
    from emoreg.behavior.impossible.graders import CHEATING, CONDUCTS

    for twin in found.twins:
        say(f"{twin}: cheating {_rate(found.rate(CHEATING, twin=twin))}")
        for conduct in CONDUCTS:
            if count := found.count(conduct, twin=twin):
                rate = _rate(found.rate(conduct, twin=twin))
                say(f"  {conduct}: {rate}; {count} where {CONDUCTS[conduct]}")


def _say_reactions(found: Any) -> None:
    from emoreg.behavior.pressure.outcomes import AGENTS, HARMFUL, OUTCOMES, SETTINGS

    for setting in found.settings:
        harm = found.rate(HARMFUL, setting=setting) if setting in AGENTS else None
        say(f"{SETTINGS[setting]}{f': harm {_rate(harm)}' if harm else ''}")
        for outcome in OUTCOMES:
            if count := found.count(outcome, setting=setting):
                rate = _rate(found.rate(outcome, setting=setting))
                say(f"  {outcome}: {rate}; {count} where {OUTCOMES[outcome]}")


def _rate(interval: Any) -> str:
    return f"{interval.estimate:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def _check_limit(limit: int | None, fewest: int) -> None:
    if limit is not None and limit < fewest:
        raise ValueError(
            f"`--limit` must be at least {fewest}, as intervals are over prompts, "
            f"found {limit}. Leave it out for all"
        )


SUITES: dict[str, Suite] = {
    "corner-cutting": Suite(
        texts=corner_cutting_twins, run=_corner_cutting, keeps=False
    ),
    "impossible-code": Suite(texts=impossible_tasks, run=_impossible_code, keeps=True),
    "pressure": Suite(texts=_pressure_texts, run=_pressure, keeps=True),
}
"""What `--suite` may name: each says its figures and returns the file it wrote."""
