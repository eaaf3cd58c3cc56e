"""The same readings, terms and gradients in every mode of training, on every trainer.

One step of a trainer whose weights were moved off the reference, with all terms at
work, is compared with the same step in the plain setting: LoRA, float32, one batch.
`record_property` keeps the differences for the matrix (scripts/matrix.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
import trainer_cases as trainers
import transformers
from datasets import Dataset
from packaging.version import Version
from peft import LoraConfig
from trainer_cases import KINDS, MATRIX, PREFERENCE, ROLLOUT
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.training.attach import attach
from emoreg.training.outcomes.feedback import Outcome
from emoreg.training.outcomes.sources import Feedback
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

Model = Callable[[], PreTrainedModel]
# Each so heavy that losing or doubling it is seen at the coarsest tolerance.
WEIGHTS = {"contrast": 1.0, "band": 1.0, "meaning": 10.0, "kl": 1000.0}
OFF = dict.fromkeys(WEIGHTS, 0.0)
ONE_STEP = {
    "max_steps": 1,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 4,
    "train_sampling_strategy": "sequential",
}
GENERATION = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of the other tests, with the marks that `assistant_only_loss` needs."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a run differs from the plain one, and how far its figures may lie from it."""

    kinds: tuple[str, ...] = KINDS
    changes: dict[str, Any] = field(default_factory=dict)
    adapter: str = "lora"
    dtype: torch.dtype = torch.float32
    parsed: bool = False
    """Whether outcomes are read from the text, since packing drops columns."""
    largest: float = 1e-4
    """Largest difference allowed, of the largest entry."""
    mean: float = 1e-5
    """Mean difference allowed, of the mean size."""

    @property
    def plain(self) -> "Mode":
        return Mode(adapter=self.adapter, parsed=self.parsed)


def checkpointing(**how: Any) -> dict[str, Any]:
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": how}


HALVES: Any = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
PACKED: Any = {"packing": True, "per_device_train_batch_size": 1}
HIDES_BLOCKS = Version(transformers.__version__) < Version("5.23")
"""Before, reentrant checkpointing ran a block's hooks without gradients."""
COARSE: Any = {"largest": 0.1, "mean": 0.1}
"""bfloat16 keeps 8 bits: one rounding is 0.4 %, and a block has dozens."""
TRL = tuple(kind for kind in KINDS if kind != "plain")

MODES = {
    "checkpointing": Mode(changes=checkpointing(use_reentrant=False)),
    "checkpointing, reentrant": Mode(changes=checkpointing(use_reentrant=True)),
    "checkpointing, selective": Mode(
        kinds=("sft",), changes=checkpointing(use_reentrant=False, selective=True)
    ),
    "activation offloading": Mode(
        kinds=("sft", *PREFERENCE), changes={"activation_offloading": True}
    ),
    "accumulation": Mode(kinds=("sft", "plain", "dpo"), changes=HALVES),
    "bf16 autocast": Mode(changes={"bf16": True}, **COARSE),
    "bf16 weights": Mode(dtype=torch.bfloat16, **COARSE),
    "fp16 weights": Mode(dtype=torch.float16, largest=0.02, mean=0.01),
    "padding-free": Mode(kinds=("sft",), changes={"padding_free": True}),
    "packing, bfd": Mode(
        kinds=("sft",), parsed=True, changes={**PACKED, "max_length": 4096}
    ),
    "packing, bfd_split": Mode(
        kinds=("sft",),
        parsed=True,
        changes={**PACKED, "max_length": 4096, "packing_strategy": "bfd_split"},
    ),
    "packing, accumulation": Mode(
        kinds=("sft",),
        parsed=True,
        changes={**PACKED, "max_length": 330, "gradient_accumulation_steps": 2},
    ),
    "DoRA, checkpointing": Mode(
        kinds=("sft", "dpo"),
        adapter="dora",
        changes=checkpointing(use_reentrant=False),
    ),
    "LoRA, checkpointing, accumulation, bf16 weights": Mode(
        kinds=("sft",),
        dtype=torch.bfloat16,
        changes={**checkpointing(use_reentrant=False), **HALVES},
        **COARSE,
    ),
    "full, bf16 weights": Mode(
        kinds=("sft",), adapter="none", dtype=torch.bfloat16, **COARSE
    ),
    "full, checkpointing, accumulation": Mode(
        kinds=("sft",),
        adapter="none",
        changes={**checkpointing(use_reentrant=False), **HALVES},
    ),
}
FAST = ("bf16 weights", "packing, accumulation")
"""What is compared; `test_only_the_labels_change` has the modes of labels."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a step showed: the log's readings and terms, and the gradient."""

    readings: dict[str, float]
    terms: dict[str, float]
    gradient: dict[str, torch.Tensor]
    start: dict[str, torch.Tensor] = field(default_factory=dict)
    """The weights before the step."""


Observe = Callable[..., Observed]


def told(text: str) -> Outcome:
    """Read the feedback of these tests' rows."""
    said = {cases.FAILS: 1.0, cases.PASSES: 0.0}
    found = [value for feedback, value in said.items() if feedback in text]
    return Outcome(failure=found[0] if found else None, source="told")


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    made: Any = model
    return made.to(dtype)


def adapter_of(kind: str) -> LoraConfig | None:
    """The package's LoRA, as DoRA, or none."""
    if kind == "none":
        return None
    made = cases.adapter()
    made.use_dora = kind == "dora"
    return made


def move(model: torch.nn.Module) -> None:
    """Move what is trained off the reference, so that every term asks for something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                scale = 0.1 * parameter.float().std() + 0.01
                parameter.add_((scale * noise).to(parameter.dtype))


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With few tokens each term has its part in the gradient, as the bounds assume."""
    return letters


@pytest.fixture
def observe(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> Observe:
    """Run one step in a mode and return what was seen."""
    del recwarn  # TRL's, of a packing that attention keeps apart here

    def run(
        kind: str,
        mode: Mode,
        weights: dict[str, float] | None = None,
        *,
        moved: bool = True,
        rows: Dataset | None = None,
        **changes: Any,
    ) -> Observed:
        keep = cases.Gradients()
        settings = {**ONE_STEP, **mode.changes, **changes}
        if kind in ROLLOUT:
            settings.pop("train_sampling_strategy")
        trainer: Any = trainers.make_trainer(
            kind,
            lambda: in_dtype(model(), mode.dtype),
            tokenizer,
            tmp_path,
            peft=adapter_of(mode.adapter),
            rows=cases.make_rows(4) if kind == "sft" and rows is None else rows,
            callbacks=[keep],
            **settings,
        )
        # Reward models predict nothing; of a packed row the anchor holds another text.
        kl = 0.0 if kind == "reward" or mode.parsed else WEIGHTS["kl"]
        weights = {**WEIGHTS, "kl": kl, **(weights or {})}
        terms = cases.make_terms(vectors, reference, **weights)
        for term in terms:
            if isinstance(term, MeaningAnchor | ReferenceKL):
                term.every, term.passages = 1, 4
        attach(
            trainer,
            monitor=Monitor(vectors),
            terms=terms,
            outcome=Feedback(parse=told) if mode.parsed else "failed",
            reference=reference,
        )
        if moved:
            move(trainer.model)
        start = cases.weights(trainer)
        torch.manual_seed(7)  # of the generations
        trainer.train()
        return Observed(
            readings=cases.logged(trainer, "emotion/")[0],
            terms={
                key: value
                for key, value in cases.logged(trainer, "emotion_loss/")[0].items()
                if not key.endswith("/task")
            },
            gradient={name: g.float() for name, g in keep.steps[0].items()},
            start=start,
        )

    return run


_PLAIN: dict[tuple[str, str], Observed] = {}


@pytest.fixture
def plain(observe: Observe) -> Callable[[str, Mode], Observed]:
    """What the plain setting shows, of each kind once."""

    def of(kind: str, mode: Mode) -> Observed:
        key = (kind, repr(mode.plain))
        if key not in _PLAIN:
            _PLAIN[key] = observe(kind, mode.plain)
        return _PLAIN[key]

    return of


def figures_apart(a: dict[str, float], b: dict[str, float]) -> tuple[float, float]:
    """Largest and mean difference, of the largest size and of the mean size."""
    assert a.keys() == b.keys()
    apart = [abs(a[key] - b[key]) for key in a]
    sizes = [abs(value) for value in a.values()]
    return max(apart) / max(sizes), sum(apart) / sum(sizes)


def apart(one: Observed, other: Observed) -> dict[str, tuple[float, float]]:
    """How far two observations lie apart, by what is observed."""
    entries = max(float(g.abs().max()) for g in one.gradient.values())
    largest, mean, size = cases.gap(one.gradient, other.gradient)
    return {
        "readings": figures_apart(steady(one.readings), steady(other.readings)),
        "terms": figures_apart(one.terms, other.terms),
        "gradient": (largest / entries, mean / size),
    }


def steady(readings: dict[str, float]) -> dict[str, float]:
    """Without percentiles: a reading near the border of a bin may fall to either."""
    return {k: v for k, v in readings.items() if not k.endswith(("_p05", "_p95"))}


def beyond(found: dict[str, tuple[float, float]], mode: Mode) -> list[str]:
    """What lies further apart than the mode allows."""
    return [
        name
        for name, (largest, mean) in found.items()
        if not (largest < mode.largest and mean < mode.mean)
    ]


def pairs() -> list[Any]:
    """Every trainer with every mode that it supports; two of SFT's are fast."""
    return [
        pytest.param(
            kind,
            name,
            id=f"{kind}-{name}",
            marks=() if kind == "sft" and name in FAST else MATRIX,
        )
        for name, mode in MODES.items()
        for kind in mode.kinds
    ]


@pytest.mark.cell(trainer="{kind}", mode="{name}")
@pytest.mark.parametrize(("kind", "name"), pairs())
def test_a_mode_trains_as_the_plain_setting_does(
    observe: Observe,
    plain: Callable[[str, Mode], Observed],
    record_property: Callable[[str, object], None],
    kind: str,
    name: str,
) -> None:
    mode = MODES[name]
    if "offloading" in name and not torch.accelerator.is_available():
        pytest.skip("TRL offloads activations from an accelerator alone")
    if HIDES_BLOCKS and ("reentrant" in name or "selective" in name):
        record_property("refused", True)
        # By emoreg, whose hooks don't fire; by torch, which may go back once only.
        said = "reentrant gradient|selective activation checkpoint"
        with pytest.raises(RuntimeError, match=said):
            observe(kind, mode)
        return
    found = apart(plain(kind, mode), observe(kind, mode))
    for what, (largest, mean) in found.items():
        record_property(what, f"{largest:.1e} {mean:.1e}")
    assert beyond(found, mode) == [], found


CONTROL = Mode(kinds=("sft",), changes=checkpointing(use_reentrant=False))


@pytest.mark.slow
def test_a_term_that_is_lost_or_doubled_would_be_seen(
    observe: Observe, plain: Callable[[str, Mode], Observed]
) -> None:
    """The control of all of the above, at the coarsest tolerance that is used."""
    coarse = Mode(**COARSE)
    ours = plain("sft", CONTROL)
    for term in WEIGHTS:
        for weight in (0.0, 2 * WEIGHTS[term]):
            found = apart(ours, observe_weight(observe, term, weight, ours))
            assert "gradient" in beyond(found, coarse), (term, weight, found)
    others = observe("sft", CONTROL, rows=cases.make_rows(8).select(range(4, 8)))
    found = apart(ours, others)
    assert {"readings", "gradient"} <= set(beyond(found, coarse))
    assert "terms" in beyond(found, CONTROL)  # by less than the coarse tolerance


def observe_weight(
    observe: Observe, term: str, weight: float, ours: Observed
) -> Observed:
    """A step with another weight; a term that is not logged keeps its figure."""
    found = observe("sft", CONTROL, {term: weight})
    return Observed(
        readings=found.readings,
        terms={**ours.terms, **found.terms},
        gradient=found.gradient,
    )


# -- modes that change the task's loss, and nothing of the terms -----------------------


def added(observe: Observe, mode: Mode, **changes: Any) -> Observed:
    """What the terms add to the gradient, with readings and values."""
    with_terms = observe("sft", mode, **changes)
    without = observe("sft", mode, OFF, **changes)
    return Observed(
        readings=with_terms.readings,
        terms=with_terms.terms,
        gradient={
            name: with_terms.gradient[name] - g for name, g in without.gradient.items()
        },
    )


LABELS: dict[str, dict[str, Any]] = {
    "whole text": {"completion_only_loss": False},
    "assistant only": {"assistant_only_loss": True, "completion_only_loss": False},
    "dft": {"loss_type": "dft"},
    "label smoothing": {"label_smoothing_factor": 0.2},
}


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.cell(trainer="sft", mode="labels: {name}")
@pytest.mark.parametrize("name", LABELS)
def test_which_tokens_are_trained_on_is_no_matter_to_the_terms(
    observe: Observe,
    tokenizer: PreTrainedTokenizerFast,
    record_property: Callable[[str, object], None],
    name: str,
) -> None:
    """Against the completion-only loss, the trainer's default for such rows."""
    tokenizer.chat_template = GENERATION
    mode = Mode(mean=1e-4)
    ours, other = added(observe, mode), added(observe, mode, **LABELS[name])
    found = apart(ours, other)
    for what, (largest, mean) in found.items():
        record_property(what, f"{largest:.1e} {mean:.1e}")
    assert beyond(found, mode) == [], found
    # Control: the task's own gradient is another one.
    tasks = (observe("sft", mode, OFF, **how) for how in ({}, LABELS[name]))
    _, mean, size = cases.gap(*(task.gradient for task in tasks))
    assert mean > 0.1 * size


# -- what is trained -------------------------------------------------------------------


@pytest.mark.cell(trainer="{kind}", mode="full, LoRA and DoRA")
@pytest.mark.parametrize(
    "kind",
    ["sft", *(pytest.param(kind, marks=MATRIX) for kind in ("plain", "dpo"))],
)
def test_full_lora_and_dora_have_the_gradients_of_one_another(
    observe: Observe, kind: str
) -> None:
    """At unmoved weights the model is one and the same, however it is trained.

    LoRA's update is `scale * B @ A` with B = 0, so the gradient of B is that of the
    weight times A. DoRA's magnitude starts as the weight's norm, and the norm is no
    part of the gradient, so B has the same.
    """
    decisions = {"meaning": 0.0, "kl": 0.0}
    modes = {name: Mode(adapter=name) for name in ("none", "lora", "dora")}
    seen = {
        name: observe(kind, mode, decisions, moved=False)
        for name, mode in modes.items()
    }
    for name in ("none", "dora"):
        for what in ("readings", "terms"):
            figures = (getattr(seen[one], what) for one in (name, "lora"))
            largest, mean = figures_apart(*figures)
            assert largest < 1e-4
            assert mean < 1e-5
    assert "magnitude" in str(seen["dora"].gradient.keys())
    lora, dora = (
        {n: g for n, g in seen[name].gradient.items() if "lora_B" in n}
        for name in ("lora", "dora")
    )
    scale, whole = 2.0, {}
    for name in lora:
        plain = name.removeprefix("base_model.model.").replace(".lora_B.default", "")
        first = seen["lora"].start[name.replace("lora_B", "lora_A")]
        whole[name] = scale * seen["none"].gradient[plain] @ first.T
    entries = max(float(g.abs().max()) for g in lora.values())
    assert entries > 1e-3
    for other in (whole, dora):
        largest, mean, size = cases.gap(lora, other)
        assert largest < 1e-4 * entries
        assert mean < 1e-4 * size
    # Control: an adapter's scale that is forgotten would be seen.
    assert cases.gap(lora, {n: g / scale for n, g in whole.items()})[0] > 0.1 * entries


# -- a step that is bitwise the trainer's own ------------------------------------------


def trained(
    kind: str,
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    prepare: Callable[[Any], Any] = lambda trainer: trainer,
    **changes: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of a run."""
    trainer = prepare(
        trainers.make_trainer(
            kind, model, tokenizer, folder, peft=adapter_of("lora"), **changes
        )
    )
    torch.manual_seed(7)
    trainer.train()
    return cases.losses(trainer), cases.weights(trainer)


FEW = {"max_steps": 50, "per_device_train_batch_size": 2, "learning_rate": 3e-3}


@pytest.mark.cell(trainer="{kind}", mode="monitor alone, 50 steps")
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in ("sft", "grpo") else MATRIX) for k in KINDS],
)
def test_fifty_steps_are_bitwise_those_without_it(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    kind: str,
) -> None:
    def with_terms(weights: dict[str, float] | None) -> Callable[[Any], Any]:
        return lambda trainer: cases.attached(trainer, vectors, reference, weights)

    run = (kind, model, tokenizer, tmp_path)
    losses, weights = trained(*run, **FEW)
    assert len(losses) == 50
    for nothing in (None, OFF):
        other, final = trained(*run, with_terms(nothing), **FEW)
        assert other == losses
        assert cases.equal(final, weights)
    contrast = {**OFF, "contrast": 1.0}  # control
    other, final = trained(*run, with_terms(contrast), **FEW)
    assert other != losses
    assert not cases.equal(final, weights)


OWN: dict[str, dict[str, Any]] = {
    "NEFTune": {"neftune_noise_alpha": 5.0},
    "eval during training": {"eval_strategy": "steps", "eval_steps": 1},
    "dropout, checkpointing": checkpointing(use_reentrant=False),
    "bf16 autocast": {"bf16": True},
}


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.cell(trainer="sft", mode="{name}, watched")
@pytest.mark.parametrize("name", OWN)
def test_watching_a_mode_with_noise_changes_nothing(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    name: str,
) -> None:
    """Where a step is random, no two settings agree: it must be the trainer's own."""

    def watched(trainer: Any) -> Any:
        return cases.attached(trainer, vectors, reference, None)

    run = ("sft", model, tokenizer, tmp_path)
    settings = {"max_steps": 3, "rows": cases.make_rows(6), **OWN[name]}
    losses, weights = trained(*run, **settings)
    other, final = trained(*run, watched, **settings)
    assert other == losses
    assert cases.equal(final, weights)
    plain, _ = trained(*run, watched, max_steps=3, rows=cases.make_rows(6))
    if name in ("NEFTune", "bf16 autocast"):  # control: the mode is at work
        assert plain != losses


@pytest.mark.matrix
@pytest.mark.slow  # tracing the model takes half a minute
@pytest.mark.cell(trainer="sft", mode="compiled")
def test_a_compiled_model_is_read_as_any_other(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """In every step, and in evaluations before and after: hooks are in the graphs.

    `test_a_model_compiled_before_is_refused` is the control: they are not where the
    model ran before they were placed.
    """
    seen = []
    for changes in ({}, {"torch_compile_backend": "eager"}):
        trainer = trainers.make_trainer(
            "sft",
            model,
            tokenizer,
            tmp_path,
            peft=cases.adapter(),
            rows=cases.make_rows(4),
            per_device_eval_batch_size=4,
            **{**ONE_STEP, "max_steps": 3, **changes},
        )
        weights = {"contrast": 1.0, "band": 1.0, "meaning": 0.0, "kl": 0.0}
        cases.attached(trainer, vectors, reference, weights)
        if changes and HIDES_BLOCKS:
            record_property("refused", True)
            with pytest.raises(RuntimeError, match="must fire in the trainer"):
                trainer.evaluate()
            return
        trainer.evaluate()
        before = cases.logged(trainer, "eval_em")  # training begins a log anew
        trainer.train()
        trainer.evaluate()
        steps, after = (
            cases.logged(trainer, "emotion"),
            cases.logged(trainer, "eval_em"),
        )
        found = [*steps, *before, *after]
        seen.append((cases.losses(trainer), found))
    (losses, logs), (other, logs2) = seen
    assert other == pytest.approx(losses, rel=1e-5)
    assert len(logs) == len(logs2) == 5
    for one, two in zip(logs, logs2, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    assert logs[1] != pytest.approx(logs[0], rel=1e-2)  # control: steps differ


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.cell(trainer="sft", mode="QLoRA, 4 bits")
def test_an_adapter_on_a_quantized_base(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Against the same weights, dequantized; TRL keeps the adapter in bfloat16."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    model().save_pretrained(tmp_path / "model")
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
    )

    def quantized() -> PreTrainedModel:
        made = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", quantization_config=four, device_map="cpu"
        )
        for module in made.modules():
            # Its kernels for newer CPUs want rows of a whole block; these have half.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        return made

    def whole() -> PreTrainedModel:
        base = model()
        with torch.no_grad():
            for name, module in quantized().named_modules():
                if type(module).__name__ == "Linear4bit":
                    weight: Any = module.weight
                    plain: Any = base.get_submodule(name)
                    plain.weight.copy_(dequantize_4bit(weight.data, weight.quant_state))
        return base

    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore

    seen = []
    for build in (whole, quantized, model):
        keep = cases.Gradients()
        trainer = trainers.make_trainer(
            "sft",
            build,
            tokenizer,
            tmp_path,
            peft=cases.adapter(),
            rows=cases.make_rows(4),
            callbacks=[keep],
            **ONE_STEP,
        )
        decisions = {**OFF, "contrast": 1.0, "band": 1.0}
        cases.attached(trainer, vectors, reference, decisions)
        trainer.train()
        seen.append(
            Observed(
                readings=cases.logged(trainer, "emotion/")[0],
                terms=cases.logged(trainer, "emotion_loss/")[0],
                gradient={
                    n: g.float() for n, g in keep.steps[0].items() if "lora_B" in n
                },
            )
        )
    found = apart(seen[0], seen[1])
    for what, (largest, mean) in found.items():
        record_property(what, f"{largest:.1e} {mean:.1e}")
    assert beyond(found, Mode(**COARSE)) == [], found
    # Control: the weights before they were quantized read otherwise.
    assert "readings" in beyond(apart(seen[2], seen[1]), Mode(**COARSE))


# -- refused ---------------------------------------------------------------------------


@pytest.mark.cell(trainer="sft", mode="Liger, fused loss", refused=True)
def test_liger_is_refused_or_missing(
    model: Model, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Its fused loss, by TRL; its kernels need a GPU and are not tested here."""
    with pytest.raises((ValueError, ImportError), match=r"(?i)liger"):
        trainers.make_trainer(
            "sft",
            model,
            tokenizer,
            tmp_path,
            use_liger_kernel=True,
            liger_kernel_config={"fused_linear_cross_entropy": True},
        )
