"""What a comparison found: figures, checks, verdict, and where it writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from emoreg.behavior.impossible.episode_table import Episodes
from emoreg.behavior.preferences import Preferences
from emoreg.behavior.pressure.reaction_table import Reactions
from emoreg.comparison.changes import Changes
from emoreg.comparison.cross import CrossReading
from emoreg.comparison.figures import FigureSet, Levels
from emoreg.comparison.moves import Move
from emoreg.comparison.plane import Plane
from emoreg.comparison.rounds import RoundTrend
from emoreg.comparison.token_readings import TokenReadings
from emoreg.comparison.verdict import Check, Judgement
from emoreg.statistics.bootstrap import Intervals


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Comparison:
    """Before and after by prompts, readers, layers and emotions.

    Example:
        `emoreg.compare(before, after, arms={"control": control}).save("report/")`
    """

    decision: FigureSet
    """Per layer, at the decision token."""
    summary: FigureSet
    """The same averaged over each group of layers; verdict and checks come from it."""
    assistant: FigureSet | None
    """Per layer, over Assistant tokens; None where these were not measured."""
    assistant_summary: FigureSet | None
    """The same averaged over each group of layers."""
    levels: dict[str, Levels]
    """Per prompt levels of the summary, for distributions."""
    headline_targets: tuple[str, ...]
    """The families, desperate and calm, as far as they were read."""
    cliffs: dict[str, Intervals]
    """Cliff's delta of failing against passing prompts, by arm, over the headline
    targets, by the audit reader at the audit layers."""
    prompts: tuple[str, ...]
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    families: dict[str, tuple[str, ...]]
    layer_plan: dict[str, tuple[int, ...]]
    audit_reader: str
    units: str
    """What a sigma_ref is here, in words."""
    gate: str
    """What decided where ratios are given, in words."""
    notes: tuple[str, ...]
    """What a reader of the figures must know besides."""
    judgement: Judgement
    meta: dict[str, dict[str, Any]]
    """Each arm's `Readings.meta`."""
    settings: dict[str, Any]
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    """Trainer `log_history` by arm, for the training curves."""
    run: Mapping[str, Any] | None = None
    """Stage times, settings, commands, machine, software."""
    behavior: Mapping[str, Preferences] = field(default_factory=dict)
    """What each arm's model would rather do, by arm; empty where it was not scored."""
    conduct: Mapping[str, Episodes] = field(default_factory=dict)
    """What each arm's model did on impossible tasks; empty where none were played."""
    pressure: Mapping[str, Reactions] = field(default_factory=dict)
    """What each arm's model did under pressure; empty where it was not played."""
    rounds: tuple[RoundTrend, ...] = ()
    """Headline targets by number of failed attempts, of every arm."""
    changes: tuple[Changes, ...] = ()
    """After against before, then against control; empty for fewer than 3 prompts."""
    cross: CrossReading | None = None
    """What is words and what is state, where the models' own text was read across."""
    plane: Plane | None = None
    """The emotions' plane; None where the table of before has none."""
    moves: tuple[Move, ...] = ()
    """How far every arm's states moved on it."""
    transcripts: tuple[tuple[TokenReadings, TokenReadings], ...] = ()
    """Transcripts token by token, before and after; those that both tables kept."""

    @property
    def verdict(self) -> str:
        """What the primary figures say, in plain words."""
        return self.judgement.verdict

    @property
    def checks(self) -> tuple[Check, ...]:
        """What must hold, what was found, passed or missed or withheld."""
        return self.judgement.checks

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, "before" and "after" first."""
        return tuple(self.decision.arms)

    def with_pressure(self, tables: Mapping[str, Reactions]) -> "Comparison":
        """Return the same with what each arm's model did under pressure.

        Args:
            tables: By arm, "before" and "after" among them; no part of the verdict.

        Raises:
            ValueError: If they are of other texts, or of other models than the
                readings.
        """
        from emoreg.comparison.pressure import checked_pressure

        return replace(self, pressure=checked_pressure(tables, self.meta))

    def table(self) -> list[dict[str, Any]]:
        """Return one row per arm, position, reader, layer or group, and target."""
        from emoreg.comparison.export import rows

        spoken = (self.assistant, self.assistant_summary)
        sets = (self.decision, self.summary, *spoken)
        return rows([figures for figures in sets if figures is not None])

    def plot_distributions(self, target: str) -> Any:
        """Return readings of failing and passing prompts, every arm, as plotly draws.

        This and its kin are the page's figures in light colours, for notebooks.

        Raises:
            ValueError: If the page has no such figure; it names those there are.
        """
        return self._plot("distributions", target)

    def plot_slopes(self, target: str, reader: str | None = None) -> Any:
        """Return the failure slope by layer, by the audit reader if no other."""
        return self._plot("slopes", f"{target}, {reader or self.audit_reader}")

    def plot_rounds(self, target: str) -> Any:
        """Return failing minus passing by number of failed attempts."""
        return self._plot("rounds", target)

    def plot_shifts(self, target: str, against: str = "before") -> Any:
        """Return the shift of each decile, after minus another arm."""
        return self._plot("shifts", f"{target}, after minus {against}")

    def plot_changes(self, against: str = "before") -> Any:
        """Return the change of the slope by emotion and layer, after minus an arm."""
        return self._plot("changes", f"after minus {against}")

    def plot_plane(self) -> Any:
        """Return where states moved among the emotions."""
        return self._plot("plane", "states among the emotions")

    def plot_training(self, key: str) -> Any:
        """Return what the trainer logged under a key."""
        return self._plot("training", key)

    def plot_behavior(self, feedback: str) -> Any:
        """Return margins of honest replies by round of such feedback."""
        return self._plot("behavior", feedback)

    def plot_conduct(self, tasks: str) -> Any:
        """Return rates of conduct on impossible or solvable tasks."""
        return self._plot("conduct", tasks)

    def _plot(self, section: str, name: str) -> Any:
        from emoreg.comparison.notebook import plot

        return plot(self, section, name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values, schema "emoreg.report/1"."""
        from emoreg.comparison.export import document

        return document(self)

    def to_json(self) -> str:
        """Return `to_dict` as text; numbers that are not finite become null."""
        from emoreg.comparison.export import to_text

        return to_text(self.to_dict())

    def to_markdown(self) -> str:
        """Return the verdict and the main figures as a section of a model card."""
        from emoreg.comparison.card import markdown

        return markdown(self)

    def to_wandb(self, run: Any) -> None:
        """Send the main figures, as numbers and a table, and the page to a W&B run."""
        from emoreg.comparison.export import primary_rows, summary
        from emoreg.comparison.report import render
        from emoreg.training.watching.trackers import report_to_wandb

        # No text of any row leaves the machine unasked.
        page = render(replace(self, transcripts=()))
        report_to_wandb(run, summary(self), primary_rows(self), page=page)

    def to_trackio(self, run: Any) -> None:
        """Send the main figures, as numbers and a table, to a Trackio run."""
        from emoreg.comparison.export import primary_rows, summary
        from emoreg.training.watching.trackers import report_to_trackio

        report_to_trackio(run, summary(self), primary_rows(self))

    def save(self, folder: str | Path) -> Path:
        """Write index.html, report.json and PNG figures; return the page's path.

        Raises:
            ValueError: If the folder cannot be written, before anything is drawn.
        """
        from emoreg.comparison.export import save

        return save(self, Path(folder))
