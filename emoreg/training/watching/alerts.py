"""Thresholds on what is logged: say so, or stop the run with a checkpoint."""

import fnmatch
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from emoreg.training.watching import trackers
from emoreg.vectors.reader_names import RANDOM

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """What must not stay so for long.

    >>> Alert(key="emotion/desperate/*/fail", above=2.33, patience=3, stop=True)
    """

    key: str
    """Logged keys that are looked at; `*` matches anything but `random`, whose readings
    are a control: name it to be alerted to them."""
    above: float = math.inf
    """Largest value that is in order. In z-scores 2.33 is the 99th percentile of the
    reference's passing turns, if those are normal."""
    below: float = -math.inf
    """Smallest value that is in order."""
    patience: int = 1
    """Log lines in a row that are out of order; lines without the key don't count."""
    stop: bool = False
    """Whether training ends, with a checkpoint, instead of going on."""

    def __post_init__(self) -> None:
        """Refuse an alert that could never be raised."""
        if math.isinf(self.above) and math.isinf(self.below):
            raise ValueError(
                "an alert must have a threshold, `above` or `below`; it has none. For "
                "example Alert(key='emotion/desperate/*/fail', above=2.33)"
            )
        if self.patience < 1:
            raise ValueError(f"`patience` must be at least 1, got {self.patience}")

    def keys(self, metrics: Mapping[str, float]) -> list[str]:
        """Return which of the logged keys are looked at."""
        found, twin = fnmatch.filter(metrics, self.key), f"/{RANDOM}/"
        if self is _FINITE or twin in self.key:
            return found
        return [key for key in found if twin not in key]

    def broken_by(self, value: float) -> bool:
        """Return whether a value is out of order; NaN always is."""
        return not self.below <= value <= self.above


_FINITE = Alert(key="emotion*", above=sys.float_info.max, below=-sys.float_info.max)


@final
class Alarm:
    """Follows log lines and raises alerts, once each time that one applies.

    Readings are the same on every process, so every process comes to the same end.
    """

    def __init__(self, alerts: Sequence[Alert]) -> None:
        """Follow `alerts`, and that every reading is finite."""
        self.alerts = (*alerts, _FINITE)
        self.streaks: dict[str, int] = {}

    def check(self, metrics: Mapping[str, float], *, step: int, speak: bool) -> bool:
        """Look at a log line and return whether training should stop.

        Args:
            metrics: What is logged.
            step: Optimizer step, for the message.
            speak: Whether this process is the one that tells.
        """
        stop = False
        for number, alert in enumerate(self.alerts):
            for key in alert.keys(metrics):
                value = metrics[key]
                name = f"{number}:{key}"
                broken = alert.broken_by(value)
                self.streaks[name] = self.streaks.get(name, 0) + 1 if broken else 0
                if self.streaks[name] == alert.patience:
                    stop |= alert.stop
                    if speak:
                        _tell(alert, key, value, step)
        return stop


def _tell(alert: Alert, key: str, value: float, step: int) -> None:
    allowed = f"within {alert.below:g} to {alert.above:g}"
    if alert is _FINITE:
        allowed = "finite"
    text = (
        f"{key} must be {allowed}; it is {value:.3g} at step {step}, for "
        f"{alert.patience} log line(s) in a row. "
        + ("Training stops with a checkpoint" if alert.stop else "Training goes on")
    )
    logger.warning("Alert: %s", text)
    trackers.alert(f"emoreg: {key}", text)
