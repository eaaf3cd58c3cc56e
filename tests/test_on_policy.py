"""On-policy measuring: what is read is what was written, and a prompt counts once."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import seam_cases as cases
import torch
from comparison_tables import FAMILIES, synthetic
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from emoreg.cli import main
from emoreg.comparison.compare import compare
from emoreg.comparison.measure import measure, prompts_hash
from emoreg.comparison.on_policy import measure_on_policy, read_samples, write_turns
from emoreg.comparison.readings import Readings
from emoreg.comparison.report import render
from emoreg.vectors.conversation_files import read_conversations
from emoreg.vectors.reading import read_conversations as read_plainly
from emoreg.writing.local import LocalWriter
from emoreg.writing.writer import Prompt, own_seed

SIZES: dict[str, Any] = {"samples": 2, "tokens": 6, "seed": 3}
READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
GIVEN: dict[str, Any] = {"emotions": READ, "layers": (9, 21), "n_prompts": 12}


@pytest.fixture
def made(
    tmp_path: Path, model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast
) -> Any:
    """A factory of on-policy tables of the tiny model."""

    def run(name: str = "t", **how: Any) -> Readings:
        given = (model(), tokenizer, cases.twins(3), cases.make_vectors())
        out = tmp_path / f"{name}.parquet"
        return measure_on_policy(*given, out=out, **{**SIZES, **how}, quiet=True)

    return run


def test_the_table_is_the_plain_reading_of_what_was_written(
    made: Any, tmp_path: Path, model: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    table, vectors = made(), cases.make_vectors()
    talks = read_conversations(tmp_path / "t.conversations.jsonl")
    assert len(talks) == 3 * 2 * SIZES["samples"]
    asked = {c.id: c for c in cases.twins(3)}
    rows = table.segments.to_pylist()
    for talk in talks:
        origin, number = talk.id.split("/")
        assert talk.messages[:-1] == asked[origin].messages[:-1]
        alone = read_plainly(model(), tokenizer, [talk], vectors, quiet=True)
        for segment, values in zip(alone.segments, alone.values, strict=True):
            if segment.turn == 0:
                continue
            [place] = [
                i
                for i, row in enumerate(rows)
                if (row["prompt"], row["variant"]) == (talk.pair, talk.variant)
                and (row["sample"], row["position"]) == (int(number), segment.position)
            ]
            assert np.allclose(table.values[place], values, atol=1e-5)
            assert rows[place]["turn"] == 1
            assert rows[place]["seed"] == own_seed(3, origin, int(number))
    assert len(rows) == 2 * len(talks)
    again = Readings.load(tmp_path / "t.parquet")
    assert again.segments.equals(table.segments)
    assert np.array_equal(again.values, table.values)


def test_the_replies_are_the_models_own(
    made: Any, tmp_path: Path, model: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Against the writer asked by hand, alone; another seed is the negative control."""
    made()
    talks = read_conversations(tmp_path / "t.conversations.jsonl")
    alone = LocalWriter(model(), tokenizer, batch=1)
    for talk in talks[:4]:
        origin, number = talk.id.split("/")
        texts = []
        for seed in (own_seed(3, origin, int(number)), 0):
            prompt = Prompt(messages=talk.messages[:-1], seed=seed, tokens=6)
            [(_, reply)] = alone.answers([prompt])
            texts.append(reply.strip())
        assert talk.messages[-1]["content"] == texts[0] != texts[1]


def test_metadata_say_what_was_read(made: Any, tmp_path: Path) -> None:
    table = made()
    talks = read_conversations(tmp_path / "t.conversations.jsonl")
    opened = [replace(c, messages=c.messages[:-1]) for c in cases.twins(3)]
    assert table.text == "on-policy"
    assert table.meta["text_hash"] == prompts_hash(talks)
    assert table.meta["prompts_hash"] == prompts_hash(opened)
    assert table.meta["generation"] == {"tokens": 6, "temperature": 0.9}
    assert not (tmp_path / "t.replies").exists()
    assert prompts_hash(talks) != made("other", seed=4).meta["text_hash"]


def test_a_run_that_was_cut_off_ends_in_the_same_files(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("whole", at_a_time=4)
    ask = LocalWriter.answers

    def cut(self: LocalWriter, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        for number, found in enumerate(ask(self, prompts)):
            if number == 6:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patched:
        patched.setattr(LocalWriter, "answers", cut)
        with pytest.raises(KeyboardInterrupt):
            made("cut", at_a_time=4)
    journal = tmp_path / "cut.replies" / "answers.journal"
    assert len(journal.read_text().splitlines()) == 1 + 6
    with pytest.raises(ValueError, match="`seed` was 3, is 9"):
        made("cut", at_a_time=4, seed=9)
    made("cut", at_a_time=4)
    for kind in ("conversations.jsonl", "parquet"):
        names = (tmp_path / f"{name}.{kind}" for name in ("whole", "cut"))
        whole, cut_off = (name.read_bytes() for name in names)
        assert whole == cut_off


def test_a_trainers_dropout_is_off_while_it_writes(
    tmp_path: Path, model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
    tuned: Any = get_peft_model(model(), config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    tuned.train()
    given = (tuned, tokenizer, cases.twins(3), cases.make_vectors())
    twice = [
        measure_on_policy(*given, out=tmp_path / f"{name}.parquet", **SIZES, quiet=True)
        for name in "ab"
    ]
    assert twice[0].meta["text_hash"] == twice[1].meta["text_hash"]
    np.testing.assert_array_equal(twice[0].values, twice[1].values)
    assert tuned.training
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():  # control: dropout is there
        assert not torch.equal(tuned(ids).logits, tuned(ids).logits)


def test_somebodys_own_files_are_left_where_they_are(made: Any, tmp_path: Path) -> None:
    (tmp_path / "t.replies").mkdir()
    (tmp_path / "t.replies" / "mine.txt").write_text("kept")
    made()
    assert [f.name for f in (tmp_path / "t.replies").iterdir()] == ["mine.txt"]


class Scripted:
    """Gives the replies it is told to."""

    def __init__(self, *replies: str) -> None:
        self.replies = replies

    def settings(self) -> dict[str, Any]:
        return {"model": "scripted"}

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        for place, prompt in enumerate(prompts):
            if not prompt.answered:
                yield place, self.replies[place % len(self.replies)]


def test_replies_that_would_break_the_frame_are_cut(
    tmp_path: Path, model: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    said = ("\n\n fine \n", "no<|im_end|>\n<|im_start|>assistant\nmore", " \n")
    written = write_turns(
        Scripted(*said),
        tokenizer,
        cases.twins(3)[:1],
        tmp_path / "r",
        **{
            **SIZES,
            "samples": 3,
        },
        quiet=True,
    )
    replies = [c.messages[-1]["content"] for c in written.conversations]
    assert replies == ["fine", "no", ""]
    vectors = cases.make_vectors()
    table = measure(
        model(),
        tokenizer,
        written.conversations,
        vectors,
        samples=written.samples,
        quiet=True,
    )
    spoken = [r["position"] == "assistant" for r in table.segments.to_pylist()]
    missing = np.isnan(table.values).all(axis=(1, 2, 3))
    assert (sum(spoken), missing.sum()) == (3, 1)  # the empty reply, and it alone
    one = table.averaged()
    kept = table.values[np.array(spoken) & ~missing]
    [place] = np.flatnonzero(np.array(one.segments["position"]) == "assistant")
    assert np.allclose(one.values[place], kept.mean(axis=0))


# ------------------------------------------------------------------ statistics


def sampled(table: Readings, count: int, *, as_prompts: bool = False) -> Readings:
    """Return a table with every row `count` times, as samples or as new prompts."""
    n = table.segments.num_rows
    rows, number = np.tile(np.arange(n), count), np.repeat(np.arange(count), n)
    segments = table.segments.take(rows)
    if as_prompts:
        names = segments["prompt"].to_pylist()
        named = [f"{name}-{k}" for name, k in zip(names, number, strict=True)]
        segments = segments.set_column(0, "prompt", pa.array(named))
    else:
        segments = segments.append_column("sample", pa.array(number, pa.int32()))
        segments = segments.append_column("seed", pa.array(number, pa.int64()))
    return replace(
        table,
        segments=segments,
        values=table.values[rows],
        resid_norm=table.resid_norm[rows],
    )


def slopes(change: Callable[[Readings], Readings]) -> Any:
    before, after = synthetic(**GIVEN), synthetic(**GIVEN, scale=0.4, seed=1)
    found = compare(change(before), change(after), roles=FAMILIES, n_resamples=300)
    assert found.assistant_summary is not None
    return [s.arms["after"].change for s in (found.summary, found.assistant_summary)]


def test_duplicated_samples_leave_every_interval_as_it_was() -> None:
    plain = slopes(lambda table: table)
    twice = slopes(lambda table: sampled(table, 2))
    wrong = slopes(lambda table: sampled(table, 2, as_prompts=True))
    for own, same, other in zip(plain, twice, wrong, strict=True):
        for end in ("estimate", "low", "high"):
            assert np.array_equal(getattr(own, end), getattr(same, end))
        assert own.n == same.n == 12
        # Counted as prompts, copies would narrow it by about the root of 2, and more.
        assert (other.high - other.low).mean() < 0.75 * (own.high - own.low).mean()


def test_the_mean_is_over_samples_first_then_over_prompts() -> None:
    """Prompts with more samples than others count no more."""
    table = sampled(synthetic(**GIVEN), 3)
    noise = np.random.default_rng(5).normal(size=table.values.shape)
    table = replace(table, values=(table.values + noise).astype(np.float32))
    number = table.segments["sample"].to_numpy()
    early = np.array(table.segments["prompt"].to_pylist()) < "task-06"
    rows = np.flatnonzero((number == 0) | early)
    table = replace(
        table,
        segments=table.segments.take(rows),
        values=table.values[rows],
        resid_norm=table.resid_norm[rows],
    )
    frame = table.segments.to_pylist()
    found = table.twin_differences("assistant")
    for place, prompt in enumerate(found.prompts):
        means = {}
        for variant in ("fail", "pass"):
            turns = [
                np.mean(
                    [
                        table.values[i]
                        for i, row in enumerate(frame)
                        if (row["prompt"], row["variant"], row["turn"])
                        == (prompt, variant, turn)
                        and row["position"] == "assistant"
                    ],
                    axis=0,
                )
                for turn in (1, 2, 3)
            ]
            means[variant] = np.mean(turns, axis=0)
        expected = means["fail"] - means["pass"]
        assert np.allclose(found.values[place], expected, atol=1e-5)


def test_a_sample_that_stands_twice_is_refused() -> None:
    table = sampled(synthetic(**GIVEN), 2)
    at = table.segments.column_names.index("sample")
    zeros = pa.array(np.zeros(table.segments.num_rows), pa.int32())
    twice = replace(table, segments=table.segments.set_column(at, "sample", zeros))
    with pytest.raises(ValueError, match="once in the table"):
        twice.twin_differences()


# ------------------------------------------------------------ what is never mixed


def on_policy(table: Readings, **more: Any) -> Readings:
    own = {"text": "on-policy", "generation": {"tokens": 8}, "samples": 2, **more}
    return replace(sampled(table, 2), meta={**table.meta, **own})


def test_given_and_sampled_text_are_never_compared() -> None:
    fixed, own = synthetic(**GIVEN), on_policy(synthetic(**GIVEN))
    for pair in ((fixed, own), (own, fixed)):
        with pytest.raises(
            ValueError, match=r"`text` must be.*'--generate`|--generate"
        ):
            compare(*pair, roles=FAMILIES, n_resamples=100)
    with pytest.raises(ValueError, match=r"`text` must be the same.*'gate'"):
        compare(own, own, gate=fixed, roles=FAMILIES, n_resamples=100)
    other = on_policy(synthetic(**GIVEN), generation={"tokens": 9})
    with pytest.raises(ValueError, match="same `--tokens`"):
        compare(own, other, roles=FAMILIES, n_resamples=100)


def test_the_page_says_which_it_is() -> None:
    fixed, own = synthetic(**GIVEN), on_policy(synthetic(**GIVEN))
    pages = [
        render(compare(t, t, roles=FAMILIES, n_resamples=100)) for t in (fixed, own)
    ]
    for page, there in zip(pages, (False, True), strict=True):
        assert ("On-policy: each model wrote the last Assistant turn" in page) == there
    assert "teacher-forced" in pages[0]
    assert "teacher-forced" not in pages[1]


def test_a_table_of_before_samples_loads_and_is_fixed(tmp_path: Path) -> None:
    old = synthetic(**GIVEN)
    assert "text" not in old.meta
    found = Readings.load(old.save(tmp_path / "old.parquet"))
    assert found.text == "fixed"
    assert found.averaged() is found
    assert found.segments.column_names == old.segments.column_names


# ------------------------------------------------------------------ the command


@pytest.fixture
def folder(
    tmp_path: Path, model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast
) -> Path:
    model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    cases.make_vectors().save(tmp_path / "v.safetensors")
    rows = [
        {
            "id": c.id,
            "pair": c.pair,
            "variant": c.variant,
            "messages": c.messages,
            "failed": c.failed,
        }
        for c in cases.twins(3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "twins.jsonl").write_text(lines)
    return tmp_path


def command(folder: Path, prompts: str, out: str, *more: str) -> list[str]:
    return [
        *("measure", "--model", str(folder / "model"), "--quiet"),
        *("--vectors", str(folder / "v.safetensors")),
        *("--prompts", str(folder / prompts), "--out", str(folder / out), *more),
    ]


def test_the_command_writes_what_another_model_can_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = ("--generate", "--samples", "2", "--tokens", "6", "--seed", "3")
    assert main(command(folder, "twins.jsonl", "own.parquet", *generate)) == 0
    assert "own.conversations.jsonl" in capsys.readouterr().out
    talks = "own.conversations.jsonl"
    assert main(command(folder, talks, "cross.parquet")) == 0
    own, cross = (Readings.load(folder / f"{n}.parquet") for n in ("own", "cross"))
    assert cross.meta["prompts_hash"] == own.meta["text_hash"]
    assert (own.text, cross.text) == ("on-policy", "fixed")
    assert cross.segments.equals(own.segments)
    assert np.array_equal(cross.values, own.values)  # the same model and text
    capsys.readouterr()
    for more in (generate, ("--generate", "--audit")):
        prompts = talks if more == generate else "twins.jsonl"
        assert main(command(folder, prompts, "x.parquet", *more)) == 2
        assert "`--generate` must have prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "end in one Assistant"),
        ({"id": "0-fail"}, "an `id` of its own"),
    ],
)
def test_prompts_that_can_not_be_asked_are_refused(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    change: dict[str, Any],
    expected: str,
) -> None:
    first, second = cases.twins(1)
    if "messages" in change:
        change = {"messages": tuple(change["messages"])}
    given = [first, replace(second, **change)]
    with pytest.raises(ValueError, match=expected):
        write_turns(Scripted("a"), tokenizer, given, tmp_path / "r", **SIZES)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("second", [{}, {"sample": "1", "seed": 2}])
def test_a_file_in_which_some_lines_are_samples_is_refused(
    tmp_path: Path, second: dict[str, Any]
) -> None:
    rows = [{"id": "a", "sample": 0, "seed": 1}, {"id": "b", **second}]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="all lines or none"):
        read_samples(path)
