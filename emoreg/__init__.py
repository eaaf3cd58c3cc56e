"""See and regularise emotion vectors while a language model is fine-tuned.

    vectors = emoreg.EmotionVectors.load("vectors.safetensors")
    trainer = SFTTrainer(model, args, peft_config=emoreg.lora_config(vectors), ...)
    reference = emoreg.calibrate(model, tokenizer, transcripts, vectors)
    terms = emoreg.presets.decouple(vectors, reference)
    monitor = emoreg.Monitor(vectors)
    trainer = emoreg.attach(trainer, monitor=monitor, terms=terms, outcome="failed")
    before = emoreg.measure(model, tokenizer, prompts, vectors)
    trainer.train()
    after = emoreg.measure(model, tokenizer, prompts, vectors)
    emoreg.compare(before, after).save("report/")

The names below are imported when first used, so `import emoreg` itself is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emoreg import demo
    from emoreg.comparison.audit.audit import audit
    from emoreg.comparison.compare import Comparison, compare
    from emoreg.comparison.evidence.gather import gather_evidence
    from emoreg.comparison.measure import measure
    from emoreg.comparison.preflight import preflight
    from emoreg.comparison.readings import Readings
    from emoreg.comparison.validate import validate
    from emoreg.losses import presets
    from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
    from emoreg.losses.band import BandPenalty
    from emoreg.losses.caps import caps
    from emoreg.losses.contrast import ContrastPenalty
    from emoreg.losses.energy import EnergyDistance
    from emoreg.losses.jumps import JumpPenalty
    from emoreg.losses.preventative import PreventativeSteering
    from emoreg.losses.reroute import RerouteAnchor
    from emoreg.losses.spikes import SpikePenalty
    from emoreg.losses.state_anchor import StateAnchor
    from emoreg.losses.steered import SteeredRobustness
    from emoreg.losses.targets import Targets
    from emoreg.losses.twins import TwinPenalty
    from emoreg.residual.capping import capped
    from emoreg.residual.capture import capture
    from emoreg.training.adapters import (
        lora_config,
        subspace_lora,
        weighted_adapters,
    )
    from emoreg.training.attach import attach, detach
    from emoreg.training.doctor.doctor import doctor
    from emoreg.training.emotion_adapter import emotion_adapter
    from emoreg.training.mixin import EmotionTrainerMixin
    from emoreg.training.outcomes.sources import Feedback, Reward
    from emoreg.training.reference import Reference, calibrate
    from emoreg.training.spike_caps import spike_penalty
    from emoreg.training.watch import watch
    from emoreg.training.watching.alerts import Alert
    from emoreg.training.watching.monitor import Monitor
    from emoreg.training.watching.probe_set import ProbeSet
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.deflection import deflection_vectors
    from emoreg.vectors.emotion_vectors import EmotionVectors
    from emoreg.vectors.extract import extract
    from emoreg.vectors.fit import VectorFitter
    from emoreg.vectors.speakers import speaker_probes
    from emoreg.vectors.steering import steer
    from emoreg.writing.endpoint import EndpointWriter
    from emoreg.writing.local import LocalWriter
    from emoreg.writing.write import stories

__version__ = "0.1.0"

__all__ = [
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
    "subspace_lora",
    "validate",
    "watch",
    "weighted_adapters",
]

_HOMES = {
    "Alert": "emoreg.training.watching.alerts",
    "BandPenalty": "emoreg.losses.band",
    "Comparison": "emoreg.comparison.compare",
    "ContrastPenalty": "emoreg.losses.contrast",
    "Corpus": "emoreg.vectors.corpus",
    "EmotionTrainerMixin": "emoreg.training.mixin",
    "EmotionVectors": "emoreg.vectors.emotion_vectors",
    "EndpointWriter": "emoreg.writing.endpoint",
    "EnergyDistance": "emoreg.losses.energy",
    "Feedback": "emoreg.training.outcomes.sources",
    "JumpPenalty": "emoreg.losses.jumps",
    "LocalWriter": "emoreg.writing.local",
    "MeaningAnchor": "emoreg.losses.anchors",
    "Monitor": "emoreg.training.watching.monitor",
    "PreventativeSteering": "emoreg.losses.preventative",
    "ProbeSet": "emoreg.training.watching.probe_set",
    "Readings": "emoreg.comparison.readings",
    "Reference": "emoreg.training.reference",
    "ReferenceKL": "emoreg.losses.anchors",
    "RerouteAnchor": "emoreg.losses.reroute",
    "Reward": "emoreg.training.outcomes.sources",
    "SpikePenalty": "emoreg.losses.spikes",
    "StateAnchor": "emoreg.losses.state_anchor",
    "SteeredRobustness": "emoreg.losses.steered",
    "Targets": "emoreg.losses.targets",
    "TwinPenalty": "emoreg.losses.twins",
    "VectorFitter": "emoreg.vectors.fit",
    "attach": "emoreg.training.attach",
    "audit": "emoreg.comparison.audit.audit",
    "detach": "emoreg.training.attach",
    "calibrate": "emoreg.training.reference",
    "capped": "emoreg.residual.capping",
    "caps": "emoreg.losses.caps",
    "capture": "emoreg.residual.capture",
    "compare": "emoreg.comparison.compare",
    "deflection_vectors": "emoreg.vectors.deflection",
    "doctor": "emoreg.training.doctor.doctor",
    "emotion_adapter": "emoreg.training.emotion_adapter",
    "extract": "emoreg.vectors.extract",
    "gather_evidence": "emoreg.comparison.evidence.gather",
    "lora_config": "emoreg.training.adapters",
    "measure": "emoreg.comparison.measure",
    "preflight": "emoreg.comparison.preflight",
    "speaker_probes": "emoreg.vectors.speakers",
    "spike_penalty": "emoreg.training.spike_caps",
    "steer": "emoreg.vectors.steering",
    "stories": "emoreg.writing.write",
    "validate": "emoreg.comparison.validate",
    "subspace_lora": "emoreg.training.adapters",
    "watch": "emoreg.training.watch",
    "weighted_adapters": "emoreg.training.adapters",
}
_MODULES = {"demo": "emoreg.demo", "presets": "emoreg.losses.presets"}


def __getattr__(name: str) -> object:
    """Return a public name, importing the module it lives in on first use."""
    if name in _MODULES:
        value: object = import_module(_MODULES[name])
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module `emoreg` has no attribute `{name}`")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names whether or not they were used yet."""
    return sorted({*globals(), *__all__})
