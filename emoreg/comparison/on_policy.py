"""On-policy measuring: the model writes the last turn itself, and that text is read.

A prompt is given up to and with its last feedback. The Assistant turn after it is what
the model would say next, so it is the one that is replaced; the turns before it stay
as they are, or the models that are compared would answer different histories.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from emoreg.behavior.provenance import model_meta
from emoreg.comparison.measure import measure, prompts_hash
from emoreg.comparison.readings import ON_POLICY, Readings
from emoreg.comparison.samples import Sample
from emoreg.losses.presets import check_same_vectors
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import d_model, num_layers
from emoreg.training.reference import Reference, as_conversations
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.records import TEXT, read_records
from emoreg.vectors.transcripts import Conversation, Transcript
from emoreg.vectors.whole_files import write_whole
from emoreg.writing.journal import NAME as JOURNAL
from emoreg.writing.journal import Journal
from emoreg.writing.local import LocalWriter
from emoreg.writing.replies import Asked, missing_replies
from emoreg.writing.writer import Writer, own_seed

SAMPLES, TOKENS, AT_A_TIME = 4, 128, 8
"""Replies to a prompt, longest reply, and replies written at a time."""
TEMPERATURE = 0.9


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """Conversations whose last turn a model wrote, samples of a prompt in a row."""

    conversations: tuple[Conversation, ...]
    samples: dict[str, Sample]
    """By the conversation's id."""

    def save(self, path: Path) -> Path:
        """Write them as JSON Lines for `emoreg measure --prompts`, by any model."""
        rows = [asdict(c) | self.samples[c.id]._asdict() for c in self.conversations]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return write_whole(path, "".join(lines).encode())


def measure_on_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Transcript | Conversation],
    vectors: EmotionVectors,
    *,
    out: Path,
    samples: int = SAMPLES,
    tokens: int = TOKENS,
    seed: int = 0,
    at_a_time: int = AT_A_TIME,
    reference: Reference | None = None,
    arm: str = "",
    guards: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Readings:
    """Let the model write each prompt's last Assistant turn, and read what it wrote.

    The table has the sampled turn alone, a row for each sample. Replies are kept beside
    it as they come: a run that was cut off goes on and ends in the same files.

    Args:
        model: The model, with or without an adapter.
        tokenizer: Its tokenizer.
        prompts: As in `measure`; each must end in an Assistant turn.
        vectors: The model's emotion vectors.
        out: The table; beside it goes the text, `<name>.conversations.jsonl`.
        samples: Replies to each prompt. More narrow the noise within a prompt.
        tokens: Longest reply.
        seed: With the prompt's id and the sample's number it makes a reply's own seed,
            so that the models that are compared draw alike.
        at_a_time: Replies written in one batch.
        reference: Gives the table its units.
        arm: Name of the model in comparisons.
        guards: Guard rails measured beside.
        quiet: No progress bar.

    Raises:
        ValueError: If a prompt can't be asked, or the vectors are another model's.
    """
    vectors.check_model(d_model=d_model(model), num_layers=num_layers(model))
    if reference is not None:
        check_same_vectors(reference, vectors)
    writer = LocalWriter(model, tokenizer, batch=at_a_time, temperature=TEMPERATURE)
    asked, about = as_conversations(prompts), model_meta(model)
    drawn = {"samples": samples, "tokens": tokens, "seed": seed}
    kept = out.with_name(f"{out.stem}.replies")
    told: Any = {**drawn, "about": about, "quiet": quiet}
    with evaluating(model):  # a trainer leaves its dropout on
        written = write_turns(writer, tokenizer, asked, kept, **told)
    written.save(out.with_name(f"{out.stem}.conversations.jsonl"))
    how: Any = {"reference": reference, "arm": arm, "guards": guards, "quiet": quiet}
    parts: Any = (model, tokenizer, written.conversations, vectors)
    found = measure(*parts, samples=written.samples, **how)
    own = {**_drawn_meta(asked, **drawn), "text_hash": found.meta["prompts_hash"]}
    table = replace(found, meta={**found.meta, **own})
    table.save(out)
    _forget(kept)
    return table


def write_turns(
    writer: Writer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    folder: Path,
    *,
    samples: int,
    tokens: int,
    seed: int,
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Written:
    """Return the prompts with their last Assistant turn written anew, several times.

    Blank space around a reply is left out, and so is what follows where it spells one
    of the tokenizer's own marks: a template would read either as part of the turn's
    frame.

    Args:
        writer: Who writes.
        tokenizer: Knows the marks.
        prompts: Each ends in the Assistant turn that is replaced.
        folder: Where replies are kept as they come; a run that was cut off goes on.
        samples: Replies to each prompt.
        tokens: Longest reply.
        seed: Every reply's own seed is made of it.
        about: What else replies depend on, JSON-able.
        quiet: No progress bar.

    Raises:
        ValueError: If a prompt can't be asked, or the folder has other settings.
    """
    opened = _open(prompts)
    if samples < 1 or tokens < 1:
        raise ValueError(
            "there must be at least 1 sample and 1 token, found `samples` "
            f"{samples} and `tokens` {tokens}. Raise what is 0"
        )
    settings = {
        "prompts_hash": prompts_hash(opened),
        **{"samples": samples, "tokens": tokens, "seed": seed},
        **writer.settings(),
        **(about or {}),
    }
    journal = Journal(folder, settings)
    _write(writer, journal, opened, settings, quiet=quiet)
    conversations, of = [], {}
    for prompt in prompts:
        for number in range(samples):
            reply = _cleaned(journal.answers[prompt.id, number], tokenizer)
            made = _ending_in(prompt, reply, number)
            conversations.append(made)
            of[made.id] = Sample(number, own_seed(seed, prompt.id, number))
    return Written(conversations=tuple(conversations), samples=of)


def read_samples(path: Path) -> dict[str, Sample]:
    """Return, by id, which samples a file's conversations are; empty if they are none.

    Raises:
        ValueError: If some of its lines say so and others don't, or not in numbers.
    """
    found = {}
    records = list(read_records(path, path.parent, required={"id": TEXT}))
    for record in records:
        sample, seed = (record.fields.get(name) for name in Sample._fields)
        if isinstance(sample, int) and isinstance(seed, int):
            found[record.fields["id"]] = Sample(sample, seed)
        elif found or sample is not None or seed is not None:
            record.fail(
                "either all lines or none must have whole numbers `sample` and `seed`",
                f"{sample!r} and {seed!r}",
                "Use the file as `emoreg measure --generate` wrote it",
            )
    if found and len(found) < len(records):
        records[0].fail(
            "either all lines or none must have `sample` and `seed`, each its own `id`",
            f"{len(found)} such lines of {len(records)}",
            "Use the file as `emoreg measure --generate` wrote it",
        )
    return found


def _write(
    writer: Writer,
    journal: Journal,
    opened: Sequence[Conversation],
    settings: Mapping[str, Any],
    *,
    quiet: bool,
) -> None:
    """Ask for the replies that the journal lacks, and keep each as it comes."""
    # Prompts of like length share a batch, so that little of it is padding.
    ranked = sorted(opened, key=lambda c: sum(len(m["content"]) for m in c.messages))
    draws = range(settings["samples"])
    asked = [Asked(c.id, number, c.messages) for c in ranked for number in draws]
    how = {name: settings[name] for name in ("seed", "tokens")}
    missing = missing_replies(asked, writer, journal, **how)
    there = sum((one.key, one.attempt) in journal.answers for one in asked)
    said = {"desc": "Writing replies", "unit": "reply", "disable": quiet}
    with tqdm(total=len(asked), initial=there, **said) as bar:
        for _ in missing:
            bar.update(1)


def _open(prompts: Sequence[Conversation]) -> list[Conversation]:
    """Return the prompts without the Assistant turn that is to be written.

    Raises:
        ValueError: If one has no such turn, or no id of its own.
    """
    for prompt in prompts:
        roles = [message["role"] for message in prompt.messages]
        if len(roles) < 2 or roles[-1] != "assistant" or roles[-2] == "assistant":
            raise ValueError(
                "each prompt must end in one Assistant turn after someone else's, "
                f"which is the one that is written anew; {prompt.id!r} ends in "
                f"{roles[-2:]}. Add a turn to be replaced, or cut what follows it"
            )
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise ValueError(
            "each prompt must have an `id` of its own, by which its replies are kept; "
            "found one twice. Rename it"
        )
    return [replace(prompt, messages=prompt.messages[:-1]) for prompt in prompts]


def _drawn_meta(
    asked: Sequence[Conversation], *, samples: int, tokens: int, seed: int
) -> dict[str, Any]:
    """Return what tells an on-policy table from others, and two of them apart."""
    return {
        "text": ON_POLICY,
        "prompts_hash": prompts_hash(_open(asked)),
        "generation": {"tokens": tokens, "temperature": TEMPERATURE},
        "samples": samples,
        "seed": seed,
    }


def _ending_in(prompt: Conversation, reply: str, number: int) -> Conversation:
    turn = {"role": "assistant", "content": reply}
    messages = (*prompt.messages[:-1], turn)
    return replace(prompt, id=f"{prompt.id}/{number}", messages=messages)


def _cleaned(reply: str, tokenizer: PreTrainedTokenizerBase) -> str:
    for mark in tokenizer.all_special_tokens:
        reply = reply.split(mark)[0]
    return reply.strip()


def _forget(folder: Path) -> None:
    """Remove the kept replies, once all that was made of them is written."""
    (folder / JOURNAL).unlink()
    with suppress(OSError):  # other files are somebody's own
        folder.rmdir()
