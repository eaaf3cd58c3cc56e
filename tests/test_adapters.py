"""Adapters taken from a folder: that they fit, and that they change something."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import emoreg
from emoreg.demo import load_any
from emoreg.training.adapters import subspace_lora, with_adapter
from emoreg.training.reference import Reference
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors


@pytest.mark.parametrize("subspace", [True, False])
def test_an_adapter_that_changes_nothing_is_warned_of(
    model: Callable[[], PreTrainedModel],
    vectors: EmotionVectors,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    subspace: bool,
) -> None:
    made: Any = model()
    if subspace:
        made = subspace_lora(made, vectors)
    else:
        made = get_peft_model(made, cases.adapter())
    made.save_pretrained(tmp_path / "untrained")
    with_adapter(model(), tmp_path / "untrained")
    assert "changes nothing" in caplog.text
    caplog.clear()  # control: one weight is enough
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.fill_(0.1)
    made.save_pretrained(tmp_path / "trained")
    with_adapter(model(), tmp_path / "trained")
    assert not caplog.text


def test_an_adapter_of_another_model_is_refused(
    model: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    made: Any = get_peft_model(model(), cases.adapter())
    made.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    renamed = {k.replace("layers.", "blocks."): v for k, v in load_file(file).items()}
    save_file(renamed, file)
    with pytest.raises(ValueError, match="trained on this model"):
        with_adapter(model(), tmp_path)


def test_a_merged_model_reads_as_its_adapter_does(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """Merged, saved and loaded anew as any model is."""
    tuned: Any = get_peft_model(model(), cases.adapter())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)

    def values(made: Any) -> np.ndarray:
        twins = Corpus.packaged().transcripts("dev")[:2]
        how: dict[str, Any] = {"reference": reference, "quiet": True}
        return emoreg.measure(made.eval(), tokenizer, twins, vectors, **how).values

    with_it = values(tuned)
    tuned.merge_and_unload().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    merged = load_any(str(tmp_path), dtype=torch.float32).model
    near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(values(merged), with_it, **near)
    assert not np.allclose(values(model()), with_it, **near)  # control
