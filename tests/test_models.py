"""Mixtures of experts and models that see images, through the same seam.

TRL adds a mixture's router loss in a way of its own, and tokenizes rows with images as
late as in the collator.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
import transformers
from datasets import Dataset
from PIL import Image
from trainer_cases import MATRIX
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.processing_llava import LlavaProcessor

from emoreg.losses.term import Probe
from emoreg.residual.capture import capture
from emoreg.residual.layers import backbone, d_model, decoder_layers, num_layers
from emoreg.residual.tokens import TurnMarkers, render, tokenizer_of
from emoreg.training.attach import attach
from emoreg.training.outcomes.columns import OUTCOMES
from emoreg.training.outcomes.sources import Feedback
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors

D_MODEL, NUM_LAYERS = 32, 4
TEXT: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}
EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.5,
    "output_router_logits": True,
}
IMAGE = "<image>"
# Parts of a message alone: a text would be read letter by letter, and lost.
PARTS_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MIXTURES = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 16}),
}
OFF = {"contrast": 0.0, "band": 0.0, "meaning": 0.0, "kl": 0.0}
CONTRAST = {**OFF, "contrast": 1.0}
SGD: dict[str, Any] = {
    "max_steps": 1,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
}


# -- mixtures of experts ---------------------------------------------------------------


@pytest.fixture
def mixture(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], PreTrainedModel]:
    """A factory of small mixtures of four experts."""

    def build(family: str) -> PreTrainedModel:
        name, sizes = MIXTURES[family]
        config = getattr(transformers, name)(
            vocab_size=len(tokenizer), **TEXT, **EXPERTS, **sizes
        )
        return cases.lively(AutoModelForCausalLM.from_config(config).eval())

    return build


def read_row_by_row(
    trainer: Any, batch: dict[str, Any], probe: Probe
) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings and outcomes at decision tokens, by a plain forward of each row."""
    markers = TurnMarkers.of(tokenizer_of(trainer.processing_class))
    values, failure = [], []
    for row, mask in enumerate(batch["attention_mask"].bool()):
        ids = batch["input_ids"][row][mask][None]
        seen = {
            key: batch[key][row : row + 1] for key in ("pixel_values",) if key in batch
        }
        at = markers.decision_tokens(ids)[0]
        with capture(trainer.model, probe.layers, gradient=True) as captured:
            trainer.model(input_ids=ids, **seen)
            read = [probe.read(captured[i][0, at], layer=i) for i in probe.layers]
            values.append(torch.stack(read, dim=1))
        failure.append(batch[OUTCOMES][row, : int(at.sum())])
    return torch.cat(values), torch.cat(failure)


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("qwen3_moe", 2),
        *(
            pytest.param(family, parts, marks=MATRIX)
            for family, parts in (("qwen3_moe", 1), ("mixtral", 1), ("mixtral", 2))
        ),
    ],
)
@pytest.mark.cell(trainer="sft", mode="mixture of experts, router loss ({family})")
def test_terms_stand_beside_the_router_loss(
    mixture: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    tmp_path: Path,
    family: str,
    parts: int,
) -> None:
    """What they add is the gradient of plain forwards, in one batch or in two."""
    reference = cases.make_reference(mixture(family), tokenizer, vectors)
    halves = {
        "per_device_train_batch_size": 4 // parts,
        "gradient_accumulation_steps": parts,
    }
    found: dict[str, Any] = {}
    for name, weights in (("with", CONTRAST), ("without", OFF), ("oracle", CONTRAST)):
        keep = cases.Gradients()
        trainer: Any = cases.make_sft(
            mixture(family),
            tokenizer,
            tmp_path,
            rows=cases.make_rows(4),
            callbacks=[keep],
            **{
                **SGD,
                "per_device_train_batch_size": 4,
                **(halves if name != "oracle" else {}),
            },
        )
        cases.attached(trainer, vectors, reference, weights)
        if name != "oracle":
            trainer.train()
            found[name] = keep.steps[0]
        found[f"log {name}"] = trainer.state.log_history
    batch = dict(next(iter(trainer.get_train_dataloader())))
    wanted = cases.contrast_gradient(trainer, [batch], read_row_by_row, cached=True)
    cases.check_added(found["with"], found["without"], wanted, tolerance=1e-3)
    log, bare = found["log with"][0], found["log without"][0]
    assert log["aux_loss"] > 1.0  # the router's own loss is on
    assert log["emotion_loss/task"] == pytest.approx(bare["loss"], abs=2e-4)
    regularizer = trainer.emotions.regularizer
    terms = sum(
        term.weight * log[f"emotion_loss/{regularizer.names[id(term)]}"]
        for term in regularizer.decision_terms
        if term.weight
    )
    assert log["loss"] - bare["loss"] == pytest.approx(terms, abs=2e-3)
    assert terms > 0.1


# -- models that see images ------------------------------------------------------------

_EYES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
SEEING: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": {"model_type": "clip_vision_model", **_EYES}},
    "gemma3": {
        "text_config": {"query_pre_attn_scalar": 8, "sliding_window": 512},
        "vision_config": _EYES,
        "mm_tokens_per_image": 4,
    },
    "idefics3": {"vision_config": _EYES, "scale_factor": 2},
    "smolvlm": {"vision_config": _EYES, "scale_factor": 2},
    "qwen2_vl": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}
        },
        "vision_config": {
            "depth": 2,
            "embed_dim": 16,
            "num_heads": 2,
            "hidden_size": D_MODEL,
        },
    },
}


def seeing(family: str, vocabulary: int, **changes: Any) -> PreTrainedModel:
    """A small model of images and text, from its config alone."""
    settings = {**SEEING[family], **changes}
    text = {**TEXT, "vocab_size": vocabulary, **settings.pop("text_config", {})}
    if family in ("llava", "idefics3", "smolvlm"):
        text["model_type"] = "llama"
    config = transformers.AutoConfig.for_model(family, text_config=text, **settings)
    torch.manual_seed(2)  # of what `lively` leaves as it is
    return cases.lively(AutoModelForImageTextToText.from_config(config).eval())


@pytest.mark.parametrize("family", SEEING)
def test_blocks_of_models_that_see_are_found_and_fire_once(
    tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    model = seeing(family, len(tokenizer))
    assert (num_layers(model), d_model(model)) == (NUM_LAYERS, D_MODEL)
    blocks = decoder_layers(model)
    inner: Any = backbone(model)
    assert list(blocks) == list(inner.layers)
    fired: list[int] = []
    for layer, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, layer=layer: fired.append(layer))
    ids = torch.tensor([tokenizer("what do you see?")["input_ids"]])
    with torch.no_grad(), capture(model, range(NUM_LAYERS)) as captured:
        out = model(input_ids=ids, output_hidden_states=True)
        for layer in range(NUM_LAYERS - 1):
            assert torch.equal(captured[layer], out.hidden_states[layer + 1])
            assert not torch.equal(captured[layer], out.hidden_states[layer])  # control
    assert fired == list(range(NUM_LAYERS))


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """A processor of images of four tokens each, and of text, from nothing."""
    from transformers import CLIPImageProcessor

    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.chat_template = None
    size = {"height": 16, "width": 16}
    eyes = CLIPImageProcessor(size=size, crop_size=size)
    return LlavaProcessor(
        image_processor=eyes,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PARTS_TEMPLATE,
    )


Seeing = Callable[[], PreTrainedModel]


@pytest.fixture
def llava(processor: LlavaProcessor) -> Seeing:
    """A factory of equal models that see."""
    tokens = processor.tokenizer
    return lambda: seeing(
        "llava", len(tokens), image_token_index=tokens.convert_tokens_to_ids(IMAGE)
    )


@pytest.fixture
def reference(
    llava: Seeing, processor: LlavaProcessor, vectors: EmotionVectors
) -> Reference:
    """What was calibrated on that model, by the processor's own tokenizer."""
    return cases.make_reference(llava(), tokenizer_of(processor), vectors)


def picture(shade: int) -> Image.Image:
    """Noise, brighter or darker."""
    generator = torch.Generator().manual_seed(shade)
    pixels = torch.randint(0, 200, (16, 16, 3), generator=generator) + 10 * shade
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def shown(rows: Sequence[dict[str, Any]], *, whole: bool) -> Dataset:
    """Conversations about a picture, whole or as prompt and completion."""
    made = []
    for k, row in enumerate(rows):
        talk = {"prompt": row["prompt"], "completion": row["completion"]}
        if whole:
            talk = {"messages": row["prompt"] + row["completion"]}
        made.append({**talk, "images": [picture(k)], "failed": row["failed"]})
    return Dataset.from_list(made)


def make_seeing(
    llava: Seeing, processor: LlavaProcessor, folder: Path, **changes: Any
) -> Any:
    rows = changes.pop("rows", None)
    rows = list(map(dict, cases.make_rows(4))) if rows is None else rows
    whole = changes.pop("whole", True)
    keep = cases.Gradients()
    trainer: Any = cases.make_sft(
        llava(),
        processor,  # pyright: ignore[reportArgumentType]
        folder,
        rows=shown(rows, whole=whole),
        callbacks=[keep],
        **{**SGD, "per_device_train_batch_size": 4, **changes},
    )
    return trainer, keep


def test_a_template_of_parts_is_rendered_in_parts(processor: LlavaProcessor) -> None:
    tokens = tokenizer_of(processor)
    talk = [{"role": "user", "content": "look"}]
    assert render(tokens, talk) == "<|im_start|>user\nlook<|im_end|>\n"
    said = tokens.apply_chat_template(talk, tokenize=False)
    assert "look" not in str(said)  # control: as a text it is lost
    assert processor.tokenizer.chat_template is None  # the processor's own is as it was
    markers = TurnMarkers.of(tokens)
    assert str(tokens.decode(list(markers.opening))).endswith("assistant\n")


@pytest.mark.parametrize(
    "whole",
    [True, pytest.param(False, marks=MATRIX)],
    ids=["messages", "prompt"],
)
@pytest.mark.cell(trainer="sft", mode="images")
def test_terms_and_readings_of_rows_with_images(
    llava: Seeing,
    processor: LlavaProcessor,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    whole: bool,
) -> None:
    """Both are those of a plain forward of each row with its own image."""
    found: dict[str, Any] = {}
    for name, weights in (("with", CONTRAST), ("without", OFF), ("oracle", CONTRAST)):
        trainer, keep = make_seeing(llava, processor, tmp_path, whole=whole)
        cases.attached(trainer, vectors, reference, weights)
        if name != "oracle":
            trainer.train()
            found[name], log = keep.steps[0], cases.logged(trainer)[0]
    batch = dict(next(iter(trainer.get_train_dataloader())))
    assert batch["pixel_values"].shape[0] == 4
    wanted = cases.contrast_gradient(trainer, [batch], read_row_by_row, cached=False)
    cases.check_added(found["with"], found["without"], wanted, tolerance=1e-3)
    monitor = trainer.emotions.regularizer.monitor
    probe = next(p for p in monitor.probes if p.reader == "lda")
    column = probe.emotions.index("desperate")
    key = f"emotion/desperate/L{probe.layers[0]}/lda/fail"

    def mean_at_failing(batch: dict[str, Any]) -> float:
        with torch.enable_grad():
            values, failure = read_row_by_row(trainer, batch, probe)
        weight = failure.nan_to_num(0.0)
        return float((values[:, 0, column].detach() * weight).sum() / weight.sum())

    assert log[key] == pytest.approx(mean_at_failing(batch), rel=1e-3, abs=1e-4)
    other = {**batch, "pixel_values": batch["pixel_values"].flip(0)}  # control
    assert log[key] != pytest.approx(mean_at_failing(other), rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.cell(trainer="sft", mode="images, watched")
def test_watching_rows_with_images_changes_nothing(
    llava: Seeing,
    processor: LlavaProcessor,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    runs = []
    for weights in ("bare", None, OFF, {**OFF, "meaning": 1.0, "contrast": 1.0}):
        trainer, _ = make_seeing(llava, processor, tmp_path, max_steps=4)
        if weights != "bare":
            cases.attached(trainer, vectors, reference, weights)  # type: ignore[arg-type]
        trainer.train()
        runs.append((cases.losses(trainer), cases.weights(trainer)))
    (losses, final), *same, acting = runs
    for other, weights in same:
        assert other == losses
        assert cases.equal(weights, final)
    assert acting[0] != losses  # control


@pytest.mark.cell(trainer="sft", mode="images, outcomes that don't fit", refused=True)
def test_outcomes_that_do_not_fit_an_image_row_are_refused(
    llava: Seeing,
    processor: LlavaProcessor,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    good = list(map(dict, cases.make_rows(4)))
    bad = [*good[:3], {**good[3], "failed": good[3]["failed"][:-1]}]
    trainer, _ = make_seeing(llava, processor, tmp_path, rows=bad)
    cases.attached(trainer, vectors, reference, CONTRAST)
    with pytest.raises(ValueError, match="one outcome per Assistant turn: row 3 of a"):
        trainer.train()
    trainer, _ = make_seeing(llava, processor, tmp_path, rows=good)
    with pytest.raises(ValueError, match="must name a column"):
        attach(trainer, monitor=Monitor(vectors), reference=reference, outcome="none")
    with pytest.raises(ValueError, match="with images must have a column"):
        attach(
            trainer, monitor=Monitor(vectors), reference=reference, outcome=Feedback()
        )


@pytest.mark.slow
@pytest.mark.cell(trainer="sft", mode="text alone, of a model that sees")
def test_text_alone_through_a_model_that_sees(
    llava: Seeing,
    processor: LlavaProcessor,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """Rows are tokenized before, so readings of the reference are cached as ever."""
    found = {}
    for name, weights in (("with", CONTRAST), ("without", OFF), ("oracle", CONTRAST)):
        keep = cases.Gradients()
        trainer: Any = cases.make_sft(
            llava(),
            processor,  # pyright: ignore[reportArgumentType]
            tmp_path,
            rows=cases.make_rows(4),
            callbacks=[keep],
            **{**SGD, "per_device_train_batch_size": 4},
        )
        cases.attached(trainer, vectors, reference, weights)
        if name != "oracle":
            trainer.train()
            found[name] = keep.steps[0]
    batch = dict(next(iter(trainer.get_train_dataloader())))
    wanted = cases.contrast_gradient(trainer, [batch], read_row_by_row, cached=True)
    cases.check_added(found["with"], found["without"], wanted, tolerance=1e-3)
