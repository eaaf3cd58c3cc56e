"""What the monitor keeps: sums that say what NumPy says of the readings themselves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tokens import by_hand
from transformers import PreTrainedTokenizerFast

from emoreg.losses.term import alone
from emoreg.residual.tokens import Thoughts
from emoreg.training.attach import attach
from emoreg.training.watching.alerts import Alarm, Alert
from emoreg.training.watching.monitor import Monitor
from emoreg.training.watching.probe_set import ProbeSet
from emoreg.training.watching.tallies import figures, tally
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.reading import read_conversations


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


def weighted(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    mean = np.average(values, weights=weight)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weight)))


def test_figures_are_those_of_the_readings() -> None:
    torch.manual_seed(1)
    values = 1.7 * torch.randn(300, 2) + 0.4
    weights = (torch.rand(3, 300) < 0.8).float() * torch.rand(3, 300)
    values[weights.sum(0) == 0] = float("nan")  # absent ones may hold anything
    values[weights[2] == 0] = float("inf")  # as may those of another group alone
    sums = tally(values, weights)
    found = figures(sums[2, 1].numpy())
    kept = weights[2].numpy() > 0
    mean, spread = weighted(values.numpy()[kept][:, 1], weights[2].numpy()[kept])
    assert found[""] == pytest.approx(mean, abs=1e-4)
    assert found["_std"] == pytest.approx(spread, abs=1e-4)
    assert np.isinf(figures(sums[0, 1].numpy())[""])  # control
    values[kept.nonzero()[0][0]] = float("nan")  # told of by the mean, in no bin
    (lost,) = weights[2:, kept.nonzero()[0][0]]
    with_nan = tally(values, weights)[2, 1]
    assert with_nan[1].isnan()
    assert float(sums[2, 1, 3:].sum() - with_nan[3:].sum()) == pytest.approx(
        float(lost), abs=1e-4
    )


def test_what_is_not_finite_is_told_and_in_no_bin() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        values = torch.tensor([bad, *[1.0] * 24])[:, None]
        sums = tally(values, torch.ones(1, 25))[0, 0].numpy()
        assert math.isnan(figures(sums)["_std"])
        assert sums[3:].sum() == 24
    nowhere = tally(torch.full((25, 1), torch.nan), torch.ones(1, 25))[0, 0].numpy()
    assert figures(nowhere).keys() == {"", "_std"}  # no bin, so no percentile


def test_percentiles_are_numpys_to_a_bin() -> None:
    torch.manual_seed(2)
    values, weight = 1.5 * torch.randn(4000, 1) - 0.3, torch.ones(1, 4000)
    found = figures(tally(values, weight)[0, 0].numpy())
    for name, share in (("_p05", 5), ("_p95", 95)):
        wanted = float(np.percentile(values.numpy(), share))
        assert found[name] == pytest.approx(wanted, abs=0.05)
        assert found[name] != pytest.approx(wanted + 0.25, abs=0.05)  # control
    far = figures(tally(100 * values, weight)[0, 0].numpy())
    assert (far["_p05"], far["_p95"]) == (-6.0, 6.0)  # the ends are open


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    values, weights = torch.randn(240, 3), torch.rand(2, 240)
    whole = tally(values, weights)
    parts = tally(values[:90], weights[:, :90]) + tally(values[90:], weights[:, 90:])
    torch.testing.assert_close(parts[..., :3], whole[..., :3])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)  # counts in float32


def test_few_readings_say_little() -> None:
    def of(count: int) -> set[str]:
        sums = tally(torch.randn(count, 1), torch.ones(1, count))
        return set(figures(sums[0, 0].numpy()))

    assert of(0) == set()
    assert of(1) == {""}
    assert of(2) == {"", "_std"}
    assert of(20) == {"", "_std", "_p05", "_p95"}


# -- what is read ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Made-up streams with what a monitor is told of them."""

    streams: dict[int, torch.Tensor]
    positions: torch.Tensor
    failure: torch.Tensor
    exists: torch.Tensor
    thoughts: Thoughts
    spoken: torch.Tensor

    @classmethod
    def made(cls, layers: Sequence[int], size: int, seed: int) -> "Batch":
        generator = torch.Generator().manual_seed(seed)

        def some(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator)

        spoken, thinking = some(size, 30) < 0.7, some(size, 30) < 0.5
        marks = some(size, 30) < 0.1
        failure = (some(size, 4) * 3).floor() / 2  # 0, 0.5 or 1
        exists = some(size, 4) < 0.8
        failure[~exists | (some(size, 4) < 0.2)] = torch.nan
        streams = {i: 4 * (some(size, 30, 32) - 0.4) for i in layers}
        positions = (some(size, 4) * 30).long()
        read = spoken.scatter(1, positions, True)
        for stream in streams.values():
            stream[~read] = torch.nan  # padding may hold anything
        return cls(
            streams=streams,
            positions=positions,
            failure=failure,
            exists=exists,
            spoken=spoken,
            thoughts=Thoughts(
                think=spoken & thinking & ~marks, answer=spoken & ~thinking & ~marks
            ),
        )

    def into(self, monitor: Monitor, *, thinks: bool = True) -> None:
        """Have the monitor read it."""
        monitor.update(
            self.streams,
            self.positions,
            self.failure,
            self.spoken,
            input_ids=self.spoken.long(),
            turns=self.exists,
            thoughts=self.thoughts if thinks else None,
        )

    def by_group(self, layer: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Residual streams of each group, with their weights."""
        stream, rows = self.streams[layer], torch.arange(len(self.failure))[:, None]
        failing, passing = self.failure.nan_to_num(0), (1 - self.failure).nan_to_num(0)
        found = {
            "fail": (stream[rows, self.positions], failing),
            "pass": (stream[rows, self.positions], passing),
            "assistant": (stream, self.spoken),
            "think": (stream, self.thoughts.think),
            "answer": (stream, self.thoughts.answer),
        }
        return {
            name: (x[w > 0].double().numpy(), w[w > 0].double().numpy())
            for name, (x, w) in found.items()
        }


def prepared(vectors: Any, reference: Any, **changes: Any) -> Monitor:
    monitor = Monitor(vectors, **changes)
    monitor.prepare(reference)
    return monitor


def test_each_reading_is_its_formula(vectors: Any, reference: Any) -> None:
    vectors = replace(vectors, centre=vectors.centre + 0.7)  # far enough to matter
    monitor = prepared(vectors, reference)
    batches = [Batch.made(monitor.layers, size, seed=size) for size in (3, 5)]
    for batch in batches:
        batch.into(monitor)
    found = monitor.metrics(alone)
    wanted: dict[str, float] = {}
    for layer, emotion, reader in product(
        monitor.layers, monitor.emotions, ("lda", "random")
    ):
        at = {"reader": reader, "layers": (layer,), "emotions": (emotion,)}
        level = float(reference.unit("success_level", **at))
        spread = float(reference.unit("success_std", **at))
        unit = vectors.direction(emotion, layer=layer, reader=reader).double().numpy()
        centre = vectors.centre[vectors.layer_index(layer)].double().numpy()
        key = f"emotion/{emotion}/L{layer}/{reader}"
        for group in ("fail", "pass", "assistant", "think", "answer"):
            parts = [batch.by_group(layer)[group] for batch in batches]
            x, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
            projection = (x - centre) @ unit
            score = (projection - level) / spread
            cosine = projection / np.linalg.norm(x - centre, axis=1)
            wanted[f"{key}/{group}"], wanted[f"{key}/{group}_std"] = weighted(
                score, weight
            )
            wanted[f"{key}/{group}_cosine"] = float(np.average(cosine, weights=weight))
            plain = np.average(projection / np.linalg.norm(x, axis=1), weights=weight)
            # Control: by the length of the stream itself it would be another number.
            assert found[f"{key}/{group}_cosine"] != pytest.approx(plain, rel=1e-3)
        wanted[f"{key}/slope"] = wanted[f"{key}/fail"] - wanted[f"{key}/pass"]
    shown = {k: v for k, v in found.items() if k in wanted}
    assert shown == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    others = {key.rsplit("/", 1)[1] for key in found.keys() - wanted.keys()}
    assert others == {
        *("fail", "pass", "unknown", "L2", "L3", "slope_running"),
        *(f"{group}_{p}" for group in ("assistant", "think", "answer")
          for p in ("p05", "p95")),
    }  # fmt: skip


def test_a_tokenizer_that_does_not_tell_thinking_has_no_such_keys(
    vectors: Any, reference: Any
) -> None:
    found = []
    for thinks in (True, False):
        monitor = prepared(vectors, reference)
        Batch.made(monitor.layers, 4, seed=1).into(monitor, thinks=thinks)
        found.append(monitor.metrics(alone))
    split = {k for k in found[0] if "/think" in k or "/answer" in k}
    assert split
    assert found[1] == {k: v for k, v in found[0].items() if k not in split}


def test_shrinking_lowers_scores_and_leaves_cosines(
    vectors: Any, reference: Any
) -> None:
    monitor = prepared(vectors, reference, readers=("lda",))
    batch = Batch.made(monitor.layers, 4, seed=2)
    batch.into(monitor)
    before = monitor.metrics(alone)
    for layer, stream in batch.streams.items():
        centre = vectors.centre[vectors.layer_index(layer)]
        stream.copy_(centre + 0.25 * (stream - centre))
    batch.into(monitor)
    after = monitor.metrics(alone)
    cosines = {k: v for k, v in before.items() if k.endswith("_cosine")}
    assert len(cosines) == 2 * 2 * 5
    assert {k: after[k] for k in cosines} == pytest.approx(cosines, rel=1e-3, abs=1e-4)
    slopes = {k: v / 4 for k, v in before.items() if k.endswith("/slope")}
    assert {k: after[k] for k in slopes} == pytest.approx(slopes, rel=1e-3, abs=1e-4)


def test_autocast_costs_no_precision(vectors: Any, reference: Any) -> None:
    found = []
    for enabled in (False, True):
        monitor = prepared(vectors, reference)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            Batch.made(monitor.layers, 4, seed=3).into(monitor)
        found.append(monitor.metrics(alone))
    assert found[0] == found[1]
    probe = monitor.probes[0]  # control: a product outside the lens would lose some
    x = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ probe.directions[0].T).dtype == torch.bfloat16


def test_random_twins_stand_beside_every_reading(
    vectors: Any, reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert [p.reader for p in prepared(vectors, reference).probes] == ["lda", "random"]
    assert not caplog.records
    tables = ("sigma_ref", "success_level", "success_std", "gap")
    older = replace(
        reference,
        readers=reference.readers[:-1],
        **{name: getattr(reference, name)[:-1] for name in tables},
    )
    assert [p.reader for p in prepared(vectors, older).probes] == ["lda"]
    (told,) = [r.getMessage() for r in caplog.records]
    assert "no units of random directions" in told
    assert "Calibrate again" in told
    with pytest.raises(ValueError, match=r"`reader` must be among .*calibrate again"):
        prepared(vectors, older, readers=("lda", "random"))
    with pytest.raises(ValueError, match="`reader` must be one of"):
        Monitor(vectors, readers=("lda", "rndom"))


def test_running_slopes_of_other_readings_start_anew(
    vectors: Any, reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def after(state: dict[str, Any], **changes: Any) -> dict[str, float]:
        monitor = prepared(vectors, reference, **changes)
        monitor.load_state_dict(state)
        Batch.made(monitor.layers, 4, seed=5).into(monitor)
        found = monitor.metrics(alone)
        return {k: v for k, v in found.items() if k.endswith("slope_running")}

    monitor = prepared(vectors, reference)
    assert after(monitor.state_dict()) == (fresh := after({}))  # nothing seen yet
    Batch.made(monitor.layers, 4, seed=4).into(monitor)
    monitor.metrics(alone)
    kept = monitor.state_dict()
    assert after(kept) != fresh
    assert not caplog.records
    swapped = after(kept, emotions=("calm", "desperate"))
    assert swapped == fresh
    assert "start anew" in caplog.records[-1].getMessage()


def test_thinking_is_read_where_the_model_thinks(
    model: Any, tokenizer: Any, vectors: Any, reference: Any, tmp_path: Path
) -> None:
    """A real trainer's log equals one plain forward per row, searched by hand."""
    import seam_cases as cases

    tokenizer.add_tokens(["<think>", "</think>"])
    thinks = cases.Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": "is <think> a word?"},
                    {"role": "assistant", "content": f"<think>hm {k}</think>yes"},
                    {"role": "user", "content": "sure?"},
                    {"role": "assistant", "content": f"<think>well{'l' * k}"},
                ]
            }
            for k in range(4)
        ]
    )
    trainer: Any = cases.make_sft(
        model(),
        tokenizer,
        tmp_path,
        rows=thinks,
        max_steps=2,
        logging_steps=2,
        learning_rate=0.0,
    )
    attach(trainer, monitor=Monitor(vectors), reference=reference)
    trainer.train()
    (log,) = logs(trainer)
    at = {"reader": "lda", "layers": (2,), "emotions": ("desperate",)}
    level = float(reference.unit("success_level", **at))
    spread = float(reference.unit("success_std", **at))
    column = vectors.emotions.index("desperate")
    found: dict[str, list[float]] = {"think": [], "answer": []}
    plain = model()
    for row in map(dict, thinks):
        text = str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            hidden = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
        values = vectors.project(hidden[3][0], layer=2, reader="lda")[:, column]
        single = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
        places = by_hand(text, "<|im_start|>assistant\n", single)
        for name, where in zip(found, places, strict=True):
            found[name] += ((values - level) / spread)[sorted(where)].tolist()
    key = "emotion/desperate/L2/lda"
    means = {name: float(np.mean(values)) for name, values in found.items()}
    for name, mean in means.items():
        assert log[f"{key}/{name}"] == pytest.approx(mean, rel=1e-3, abs=1e-3)
    assert means["think"] != pytest.approx(means["answer"], abs=1e-2)  # control


def logs(trainer: Any) -> list[dict[str, float]]:
    return [e for e in trainer.state.log_history if "emotion_turns/fail" in e]


@pytest.fixture
def watched(
    model: Any, tokenizer: Any, vectors: Any, reference: Any, tmp_path: Path
) -> Any:
    import seam_cases as cases

    def make(**changes: Any) -> Any:
        trainer = cases.make_sft(model(), tokenizer, tmp_path, **changes)
        return cases.attached(trainer, vectors, reference, None)

    return make


def test_turns_are_counted_by_outcome(watched: Any) -> None:
    trainer = watched(max_steps=4, logging_steps=4)
    trainer.train()
    rows = trainer.train_dataset["failed"]
    known = [x for row in rows for x in row if x is not None]
    unknown = sum(x is None for row in rows for x in row)
    (log,) = logs(trainer)
    assert log["emotion_turns/fail"] == pytest.approx(sum(known))
    assert log["emotion_turns/pass"] == pytest.approx(sum(1 - x for x in known))
    assert log["emotion_turns/unknown"] == unknown
    assert log["emotion_norm/L2"] > 0


def test_the_running_slope_is_that_of_past_turns(watched: Any) -> None:
    """With weights that stand still: means over steps, older ones fading."""
    trainer = watched(max_steps=6, learning_rate=0.0)
    trainer.train()
    key = "emotion/desperate/L2/lda"
    sums = {"fail": np.zeros(2), "pass": np.zeros(2)}
    for log in logs(trainer):
        for side, kept in sums.items():
            count = log[f"emotion_turns/{side}"]
            total = count * log.get(f"{key}/{side}", 0.0)
            sums[side] = kept * np.exp(-count / 200) + np.array([count, total])
        if all(kept[0] for kept in sums.values()):
            means = {side: kept[1] / kept[0] for side, kept in sums.items()}
            wanted = means["fail"] - means["pass"]
            assert log[f"{key}/slope_running"] == pytest.approx(wanted, abs=1e-3)
    assert log[f"{key}/slope_running"] != log.get(f"{key}/slope")  # control


def test_the_running_slope_survives_a_checkpoint(watched: Any) -> None:
    uncut = watched(max_steps=4, save_strategy="steps", save_steps=2)
    uncut.train()
    key = "emotion/desperate/L2/lda/slope_running"
    folder = Path(uncut.args.output_dir, "checkpoint-2")
    resumed = watched(max_steps=4)
    resumed.train(resume_from_checkpoint=str(folder))
    assert logs(resumed)[-1][key] == logs(uncut)[-1][key]
    (folder / "emoreg_terms.pt").unlink()
    forgetful = watched(max_steps=4)
    forgetful.train(resume_from_checkpoint=str(folder))
    assert logs(forgetful)[-1][key] != logs(uncut)[-1][key]  # control


# -- alerts --------------------------------------------------------------------------


def test_an_alert_waits_for_its_patience_and_is_raised_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alarm = Alarm(
        [Alert(key="emotion/desperate/*/fail", above=2.0, patience=2, stop=True)]
    )
    lines = [3.0, 1.0, 3.0, None, 3.0, 3.0, 1.0, 3.0, 3.0]
    stops = []
    for step, value in enumerate(lines):
        metrics = {} if value is None else {"emotion/desperate/L2/lda/fail": value}
        metrics["emotion/calm/L2/lda/fail"] = 9.0  # another emotion's is not looked at
        stops.append(alarm.check(metrics, step=step, speak=True))
    assert stops == [False, False, False, False, True, False, False, False, True]
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2
    assert "must be within -inf to 2; it is 3 at step 4" in told[0]


def test_random_twins_raise_no_alarm_unless_they_are_named() -> None:
    metrics = {
        "emotion/calm/L2/lda/fail": 0.0,
        "emotion/calm/L2/random/fail": 5.0,
        "emotion/calm/L2/random/pass": float("nan"),
    }
    by_star = Alert(key="emotion/*/fail", above=1.0)
    assert by_star.keys(metrics) == ["emotion/calm/L2/lda/fail"]
    named = Alert(key="emotion/*/random/fail", above=1.0)
    assert named.keys(metrics) == ["emotion/calm/L2/random/fail"]
    alarm = Alarm([replace(by_star, stop=True)])
    assert not alarm.check(metrics, step=1, speak=False)
    assert Alarm([replace(named, stop=True)]).check(metrics, step=1, speak=False)
    # That a reading is not finite is told of these too.
    assert {k.split(":")[1] for k, n in alarm.streaks.items() if n} == {
        "emotion/calm/L2/random/pass"
    }


def test_only_one_process_tells(caplog: pytest.LogCaptureFixture) -> None:
    alarm = Alarm([Alert(key="emotion*", below=0.0, stop=True)])
    assert alarm.check({"emotion/calm/L2/lda/fail": -1.0}, step=1, speak=False)
    assert not caplog.records


def test_a_reading_that_is_not_finite_is_always_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alarm = Alarm([])
    for value in (1e30, float("nan"), float("inf")):
        alarm.check(
            {"emotion_norm/L2": value, "loss": float("nan")}, step=1, speak=True
        )
        alarm.streaks.clear()
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2  # neither the large one nor the trainer's own loss
    assert "emotion_norm/L2 must be finite; it is nan" in told[0]


def test_alerts_that_could_never_be_raised_are_refused() -> None:
    with pytest.raises(ValueError, match="must have a threshold"):
        Alert(key="emotion*")
    with pytest.raises(ValueError, match="`patience` must be at least 1"):
        Alert(key="emotion*", above=1.0, patience=0)


def test_a_run_stops_with_a_checkpoint(
    model: Any, tokenizer: Any, vectors: Any, reference: Any, tmp_path: Path
) -> None:
    import seam_cases as cases

    steps = []
    for limit in (-100.0, 1e6):
        folder = tmp_path / str(limit)
        trainer: Any = cases.make_sft(
            model(),
            tokenizer,
            folder,
            max_steps=6,
            save_strategy="steps",
            save_steps=50,
        )
        alert = Alert(key="emotion/*/assistant", above=limit, patience=3, stop=True)
        attach(
            trainer,
            monitor=Monitor(vectors, alerts=[alert]),
            outcome="failed",
            reference=reference,
        )
        trainer.train()
        steps.append(trainer.state.global_step)
        saved = (folder / "checkpoint-3" / "emoreg_terms.pt").is_file()
        assert saved == (limit < 0)
    assert steps == [3, 6]


# -- the probe set -------------------------------------------------------------------


@pytest.fixture
def probed(
    model: Any, tokenizer: Any, vectors: Any, reference: Any, tmp_path: Path
) -> Any:
    import seam_cases as cases

    def make(every: int | None, *, terms: bool = False, **changes: Any) -> Any:
        trainer: Any = cases.make_sft(model(), tokenizer, tmp_path, **changes)
        fixed = ProbeSet(conversations=cases.twins(3), every=every) if every else None
        weights = {"meaning": 0.0, "kl": 0.0} if terms else None
        return attach(
            trainer,
            monitor=Monitor(vectors, probe_set=fixed),
            terms=cases.make_terms(vectors, reference, **weights) if weights else (),
            outcome="failed",
            reference=reference,
        )

    return make


def probes(trainer: Any) -> list[dict[str, float]]:
    return [
        {k: v for k, v in entry.items() if k.startswith("emotion_probe")}
        for entry in trainer.state.log_history
        if any(k.startswith("emotion_probe") for k in entry)
    ]


def test_the_probe_set_is_read_as_measure_reads_it(
    probed: Any, model: Any, tokenizer: Any, vectors: Any, reference: Any
) -> None:
    import seam_cases as cases

    trainer = probed(2, max_steps=4, learning_rate=0.0)
    trainer.train()
    first, second = probes(trainer)  # at the first log line, and two steps later
    assert first == pytest.approx(second, abs=1e-5)  # the weights stood still
    read = read_conversations(model(), tokenizer, cases.twins(3), vectors, quiet=True)
    at = {"reader": "lda", "layers": (cases.LOSS_LAYER,), "emotions": ("desperate",)}
    level = float(reference.unit("success_level", **at))
    spread = float(reference.unit("success_std", **at))
    values = read.values[
        :,
        vectors.readers.index("lda"),
        vectors.layers.index(cases.LOSS_LAYER),
        vectors.emotions.index("desperate"),
    ]
    segments = [s for s in read.segments if s.position == "decision"]
    at_decisions = [s.position == "decision" for s in read.segments]
    outcomes = np.array([s.failure for s in segments], dtype=float)
    values = (np.asarray(values, dtype=float)[at_decisions] - level) / spread
    failing = outcomes == 1
    wanted = {"fail": values[failing].mean(), "pass": values[outcomes == 0].mean()}
    key = "emotion_probe/desperate/L2/lda"
    assert first.keys() == {
        f"emotion_probe/{emotion}/L{layer}/{reader}/{name}"
        for emotion in ("desperate", "calm")
        for layer in (2, 3)
        for reader in ("lda", "random")
        for name in ("fail", "pass", "slope")
    }
    for side, value in wanted.items():
        assert first[f"{key}/{side}"] == pytest.approx(value, rel=1e-3, abs=1e-3)
    slope = wanted["fail"] - wanted["pass"]
    assert first[f"{key}/slope"] == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_probing_changes_nothing_in_training(probed: Any) -> None:
    import seam_cases as cases

    with_probe, without = probed(1, terms=True), probed(None, terms=True)
    for trainer in (with_probe, without):
        trainer.train()
    assert len(probes(with_probe)) == 8
    assert cases.equal(cases.weights(with_probe), cases.weights(without))
    key = "emotion_probe/desperate/L2/lda/fail"
    values = [entry[key] for entry in probes(with_probe)]
    assert len(set(values)) == 8  # control: it does see the weights move


def test_a_probe_set_without_a_contrast_is_refused() -> None:
    import seam_cases as cases

    failing = [c for c in cases.twins(2) if c.variant == "fail"]
    with pytest.raises(ValueError, match="must hold failing and passing turns"):
        ProbeSet(conversations=failing)
    packaged = ProbeSet.packaged(twins=4)
    assert len(packaged.conversations) == 8
    trained = {t.id for t in Corpus.packaged().transcripts("train")}
    assert not trained & {c.pair for c in packaged.conversations}
