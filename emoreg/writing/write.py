"""`stories`: a corpus, written by a model, checked text by text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tqdm.auto import tqdm

from emoreg.vectors.corpus import Corpus
from emoreg.vectors.texts import check_splits
from emoreg.vectors.whole_files import write_whole
from emoreg.writing.corpus_files import write_corpus
from emoreg.writing.journal import Journal
from emoreg.writing.judging import Judged, judge
from emoreg.writing.plan import KINDS, NEUTRAL, STORIES, Request, plan
from emoreg.writing.prompts import messages_for
from emoreg.writing.writer import Prompt, Writer, own_seed

TOKENS = 300
"""Longest answer for each text asked for: 150 words are about 200 tokens."""
SUMMARY = "written.txt"
"""What was taken and what was not, and every request that was given up."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Written:
    """What was written, what was not taken, and where it is."""

    folder: Path
    wanted: dict[str, int]
    """Texts asked for, by kind."""
    taken: dict[str, int]
    """Texts that the corpus has, by kind."""
    rejected: dict[str, int]
    """Texts that were not taken, by reason."""
    given_up: tuple[str, ...]
    """Requests without enough texts after all attempts."""
    lacking: str = ""
    """What `extract` would miss; empty if it has all it needs."""

    def lines(self) -> list[str]:
        """Return all of it in a few lines."""
        said = [
            f"{kind}: {self.taken[kind]} of {wanted} texts"
            for kind, wanted in self.wanted.items()
        ]
        if self.rejected:
            counted = sorted(self.rejected.items(), key=lambda item: -item[1])
            named = ", ".join(f"{count} {reason}" for reason, count in counted)
            said.append(f"Not taken: {named}")
        if self.given_up:
            first = ", ".join(self.given_up[:3])
            more = ", ..." if len(self.given_up) > 3 else ""
            said.append(f"Given up: {len(self.given_up)} requests ({first}{more})")
        if self.lacking:
            said.append(f"`emoreg extract` can't use it yet: {self.lacking}")
        return said


def stories(
    writer: Writer,
    out: str | Path,
    *,
    emotions: Sequence[str] | None = None,
    kinds: Sequence[str] = (STORIES, NEUTRAL),
    per_topic: int = 1,
    seed: int = 0,
    quiet: bool = False,
) -> Written:
    """Write a corpus into a folder, as the paper had its own model do.

    Stories in which an emotion is felt and never named, on fixed topics; neutral text;
    dialogues in which one speaker feels something; scenes in which one emotion is felt
    and another shown, dialogues of the same kind (https://transformer-circuits.pub/2026/emotions/index.html).
    Texts that fail a check are not taken, counted by reason, and asked for again.

    Answers are kept as they come: a folder that holds some goes on where it stood,
    whatever stopped it. The files of the corpus are made of them, and `written.txt`
    says what was not taken and why.

    Args:
        writer: `LocalWriter` or `EndpointWriter`, or anything with their methods.
        out: The folder.
        emotions: Emotion concepts; the 171 of the packaged corpus when None.
        kinds: `stories`, `neutral`, `dialogues`, `masked`, `masked_dialogues`.
        per_topic: Stories of each emotion and topic.
        seed: Every prompt's own seed is made of it.
        quiet: No progress bar.

    Raises:
        ValueError: If the folder was begun with other settings, holds a corpus from
            elsewhere, or can't be written; on emotions that make no file names.
        ConnectionError: If an endpoint fails; what was written is kept.
        OSError: If the disk is full; what is there is whole.
    """
    folder = Path(out)
    emotions = Corpus.packaged().emotions() if emotions is None else emotions
    requests = plan(emotions, kinds, per_topic)
    settings = {
        "kinds": [kind for kind in KINDS if kind in kinds],
        "emotions": list(emotions),
        "per_topic": per_topic,
        "seed": seed,
        **writer.settings(),
    }
    journal = Journal(folder, settings)
    judged = judge(requests, journal.answers)
    try:
        while judged.missing:
            _ask(writer, journal, judged, seed=seed, quiet=quiet)
            judged = judge(requests, journal.answers)
    except BaseException:
        judged = judge(requests, journal.answers)
        _finish(folder, requests, judged)
        raise
    return _finish(folder, requests, judged)


def _ask(
    writer: Writer, journal: Journal, judged: Judged, *, seed: int, quiet: bool
) -> None:
    """Put the requests that are missing and keep each answer as it comes."""
    missing = set(judged.missing)
    prompts = [
        Prompt(
            messages=tuple(messages_for(request)),
            seed=own_seed(seed, request.key, attempt),
            tokens=TOKENS * request.texts,
            answered=(request, attempt) not in missing,
        )
        for request, attempt in judged.round
    ]
    said = f"Writing, attempt {judged.round[0][1] + 1}"
    there = len(prompts) - len(missing)
    with tqdm(
        total=len(prompts), initial=there, desc=said, unit="answer", disable=quiet
    ) as bar:
        for place, answer in writer.answers(prompts):
            request, attempt = judged.round[place]
            journal.add(request.key, attempt, answer)
            bar.update(1)


def _finish(folder: Path, requests: Sequence[Request], judged: Judged) -> Written:
    """Write the corpus's files, and in words what became of every request."""
    write_corpus(folder, requests, judged.taken)
    written = _summary(folder, requests, judged)
    lines = [*written.lines(), *(f"given up: {key}" for key in written.given_up)]
    write_whole(folder / SUMMARY, "".join(f"{line}\n" for line in lines).encode())
    return written


def _lacking(folder: Path) -> str:
    """Return what `extract` would miss in a folder, with every text in it checked."""
    corpus = Corpus(folder)
    try:
        check_splits(corpus.stories(split="all"))
        corpus.neutral("fit")
    except ValueError as error:
        return str(error)
    return ""


def _summary(folder: Path, requests: Sequence[Request], judged: Judged) -> Written:
    asked = list(dict.fromkeys(request.kind for request in requests))
    return Written(
        folder=folder,
        wanted={k: sum(r.texts for r in requests if r.kind == k) for k in asked},
        taken={
            k: sum(len(judged.taken[r.key]) for r in requests if r.kind == k)
            for k in asked
        },
        rejected=dict(judged.rejected),
        given_up=judged.given_up,
        lacking=_lacking(folder),
    )
