"""What the monitor keeps: sums that say what NumPy says of the readings themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emoreg.training.alerts import Alarm, Alert
from emoreg.training.attach import attach
from emoreg.training.monitor import Monitor
from emoreg.training.probe_set import ProbeSet
from emoreg.training.tallies import figures, tally
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.reading import read_conversations


def weighted(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    mean = np.average(values, weights=weight)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weight)))


def test_figures_are_those_of_the_readings() -> None:
    torch.manual_seed(1)
    values = 1.7 * torch.randn(6, 50, 2) + 0.4
    weight = (torch.rand(6, 50) < 0.8).float() * torch.rand(6, 50)
    values[weight == 0] = float("nan")  # absent ones may hold anything
    found = figures(tally(values, weight)[1])
    kept = weight.numpy() > 0
    mean, spread = weighted(values.numpy()[kept][:, 1], weight.numpy()[kept])
    assert found[""] == pytest.approx(mean, abs=1e-4)
    assert found["_std"] == pytest.approx(spread, abs=1e-4)


def test_percentiles_are_numpys_to_a_bin() -> None:
    torch.manual_seed(2)
    values, weight = 1.5 * torch.randn(1, 4000, 1) - 0.3, torch.ones(1, 4000)
    found = figures(tally(values, weight)[0])
    for name, share in (("_p05", 5), ("_p95", 95)):
        wanted = float(np.percentile(values.numpy(), share))
        assert found[name] == pytest.approx(wanted, abs=0.05)
        assert found[name] != pytest.approx(wanted + 0.25, abs=0.05)  # control
    far = figures(tally(100 * values, weight)[0])
    assert (far["_p05"], far["_p95"]) == (-6.0, 6.0)  # the ends are open


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    values, weight = torch.randn(8, 30, 3), torch.rand(8, 30)
    whole = tally(values, weight)
    parts = tally(values[:3], weight[:3]) + tally(values[3:], weight[3:])
    torch.testing.assert_close(parts, whole)


def test_few_readings_say_little() -> None:
    def of(count: int) -> set[str]:
        return set(figures(tally(torch.randn(1, count, 1), torch.ones(1, count))[0]))

    assert of(0) == set()
    assert of(1) == {""}
    assert of(2) == {"", "_std"}
    assert of(20) == {"", "_std", "_p05", "_p95"}


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
