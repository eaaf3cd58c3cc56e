"""`import emoreg` is quick, its names all resolve, and none hides a submodule."""

import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import emoreg

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "wandb",
    "trackio",
    "matplotlib",
    "plotly",
    "scipy",
    "trl",
)
PUBLIC = {
    "Alert",
    "BandPenalty",
    "Comparison",
    "ContrastPenalty",
    "Corpus",
    "EmotionTrainerMixin",
    "EmotionVectors",
    "EndpointWriter",
    "EnergyDistance",
    "Feedback",
    "JumpPenalty",
    "LocalWriter",
    "MeaningAnchor",
    "Monitor",
    "PreventativeSteering",
    "ProbeSet",
    "Readings",
    "Reference",
    "ReferenceKL",
    "RerouteAnchor",
    "Reward",
    "SpikePenalty",
    "StateAnchor",
    "SteeredRobustness",
    "Targets",
    "TwinPenalty",
    "VectorFitter",
    "attach",
    "audit",
    "calibrate",
    "capped",
    "caps",
    "capture",
    "compare",
    "deflection_vectors",
    "demo",
    "detach",
    "doctor",
    "emotion_adapter",
    "extract",
    "gather_evidence",
    "lora_config",
    "measure",
    "preflight",
    "presets",
    "speaker_probes",
    "spike_penalty",
    "steer",
    "stories",
    "validate",
    "subspace_lora",
    "watch",
    "weighted_adapters",
}
MODULES = {"demo", "presets"}


def loaded_by(statement: str) -> set[str]:
    """Return which heavy packages a fresh interpreter has after a statement."""
    code = (
        f"import sys\n{statement}\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import emoreg", "import emoreg; dir(emoreg)", "from emoreg import Corpus"],
)
def test_importing_pulls_in_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_tables_are_compared_without_a_model() -> None:
    """Torch and transformers would be a tenth of the time of a large comparison."""
    statement = (
        "import emoreg.comparison.report, emoreg.comparison.plots\n"
        "from emoreg import Readings, compare"
    )
    assert not {"torch", "transformers"} & loaded_by(statement)


def test_the_check_can_fail() -> None:
    assert "scipy" in loaded_by("import emoreg, scipy")


def test_the_public_names_are_these() -> None:
    assert set(emoreg.__all__) == PUBLIC
    assert set(dir(emoreg)) >= PUBLIC
    assert emoreg.__all__ == sorted(emoreg.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_resolves_twice_to_the_same_thing(name: str) -> None:
    first = getattr(emoreg, name)
    assert getattr(emoreg, name) is first
    assert isinstance(first, ModuleType) == (name in MODULES)


def test_no_public_name_hides_a_submodule() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(emoreg.__path__)}
    assert "vectors" in submodules
    assert PUBLIC & submodules <= MODULES
    assert emoreg.demo is sys.modules["emoreg.demo"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        _ = emoreg.nothing  # type: ignore[attr-defined]
