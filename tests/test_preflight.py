"""Patching sets what it should and nothing else; the pre-flight says what follows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import emoreg
from emoreg.cli import main
from emoreg.comparison.preflight import Preflight, preflight, success_patches
from emoreg.residual.capture import capture
from emoreg.residual.patch import Patch, patched
from emoreg.residual.tokens import TurnMarkers
from emoreg.validation.check import Check, Figure
from emoreg.vectors.corpus import Corpus

Build = Callable[[str], PreTrainedModel]
WIDTH = 32


def every_third(ids: Tensor) -> Tensor:
    return (torch.arange(ids.shape[1]) % 3 == 0).expand_as(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_space_is_set_at_marked_tokens_and_all_else_stays(
    tiny_model: Build, family: str
) -> None:
    model, ids = tiny_model(family).eval(), torch.randint(1, 200, (2, 11))
    directions, levels = torch.randn(3, WIDTH), torch.tensor([4.0, -1.0, 0.5])
    patch = Patch.of(directions, levels)
    with torch.no_grad(), capture(model, (1, 2)) as captured:
        model(input_ids=ids)
        plain = {layer: captured[layer].clone() for layer in (1, 2)}
    with (
        torch.no_grad(),
        patched(model, {1: patch}, where=every_third),
        capture(model, (1, 2)) as captured,
    ):
        model(input_ids=ids)
        moved = {layer: captured[layer].clone() for layer in (1, 2)}
    marked = every_third(ids)
    found = moved[1][marked] @ directions.T
    torch.testing.assert_close(found, levels.expand_as(found), rtol=1e-3, atol=1e-3)
    assert torch.equal(moved[1][~marked], plain[1][~marked])
    change = moved[1][marked] - plain[1][marked]
    outside = change - (change @ patch.basis.T) @ patch.basis
    assert float(outside.abs().max()) < 1e-4
    assert not torch.allclose(moved[2][:, -1], plain[2][:, -1])  # what follows sees it
    with torch.no_grad(), capture(model, (1,)) as captured:  # and it is gone after
        model(input_ids=ids)
        assert torch.equal(captured[1], plain[1])


def test_a_patch_is_exact_under_a_callers_autocast(tiny_model: Build) -> None:
    model, ids = tiny_model("llama").eval(), torch.randint(1, 200, (2, 11))
    directions, levels = torch.randn(3, WIDTH), torch.tensor([4.0, -1.0, 0.5])
    patch = Patch.of(directions, levels)
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        patched(model, {1: patch}, where=every_third),
        capture(model, (1,)) as captured,
    ):
        model(input_ids=ids)
        moved = captured[1].float()[every_third(ids)]
    found = moved @ directions.T
    torch.testing.assert_close(found, levels.expand_as(found), rtol=1e-3, atol=1e-3)


def test_levels_are_met_by_least_squares() -> None:
    base = torch.randn(2, WIDTH)
    directions = torch.cat([base, base.sum(0, keepdim=True)])  # one too many
    levels = torch.tensor([1.0, 2.0, 9.0])
    patch = Patch.of(directions, levels)
    assert patch.basis.shape == (2, WIDTH)
    h = (patch.goal @ patch.basis).double().numpy()
    pair = directions.double().numpy(), levels.double().numpy()
    oracle = np.linalg.lstsq(*pair, rcond=1e-6)[0]
    np.testing.assert_allclose(h, oracle, atol=1e-4)
    eye = patch.basis @ patch.basis.T
    torch.testing.assert_close(eye, torch.eye(2), rtol=1e-4, atol=1e-5)


def test_what_can_not_be_patched_is_refused(tiny_model: Build) -> None:
    model = tiny_model("llama")
    narrow = Patch.of(torch.randn(1, 8), torch.ones(1))
    with (
        pytest.raises(ValueError, match="must have the model's width 32, got 8"),
        patched(model, {1: narrow}, where=every_third),
    ):
        pass
    right = Patch.of(torch.randn(1, WIDTH), torch.ones(1))
    with (
        pytest.raises(ValueError, match="must be given `input_ids`"),
        patched(model, {1: right}, where=every_third),
    ):
        model(inputs_embeds=torch.randn(1, 4, WIDTH))


def test_after_the_patch_the_losss_readings_stand_at_success(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: Any,
    reference: Any,
) -> None:
    corpus, trained = Corpus.packaged(), model()
    patches = success_patches(vectors, reference, corpus.roles())
    assert set(patches) == set(reference.plan.loss)
    twins = corpus.transcripts("dev")[:3]
    how: dict[str, Any] = {"reference": reference, "quiet": True}
    markers = TurnMarkers.of(tokenizer)
    plain = emoreg.measure(trained, tokenizer, twins, vectors, **how)
    with patched(trained, patches, where=markers.decision_tokens):
        table = emoreg.measure(trained, tokenizer, twins, vectors, **how)
    roles = corpus.roles()
    emotions = [e for e in (*roles.lower, *roles.raise_) if e in vectors.emotions]
    rows = np.array(table.segments["position"].to_pylist()) == "decision"
    columns = [table.emotions.index(e) for e in emotions]
    for reader in ("lda", "mean-difference"):
        for layer in reference.plan.loss:
            at: dict[str, Any] = {"layers": [layer], "emotions": emotions}
            level = reference.unit("success_level", reader=reader, **at)[0].numpy()
            place = table.readers.index(reader), table.layers.index(layer)
            found = table.values[rows][:, place[0], place[1]][:, columns]
            before = plain.values[rows][:, place[0], place[1]][:, columns]
            assert np.abs(found - level).max() < 0.02 * np.abs(before - level).max()


def verdicts(effect: float, causal: float, vectors: float) -> Preflight:
    def check(name: str, value: float) -> Check:
        head = Figure(name=name, value=value)
        return Check(name=name, question="", method="", headline=head, threshold=1.0)

    return Preflight(
        effect=check("effect", effect),
        vectors=check("vectors", vectors),
        causal=check("causal", causal),
        patching=replace(check("patching", 0.5), threshold=None),
    )


def test_the_advice_follows_from_the_checks() -> None:
    assert verdicts(2.0, 2.0, 2.0).advice == "train"
    assert verdicts(0.0, 2.0, 2.0).advice == "monitor only"
    assert verdicts(2.0, 0.0, 2.0).advice == "monitor only"
    assert verdicts(2.0, 2.0, 0.0).advice == "extract again"
    assert verdicts(2.0, 2.0, 2.0).lines()[-1].startswith("Advice: train, since")


def test_a_model_that_knows_nothing_is_not_to_be_trained(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: Any,
    reference: Any,
    tmp_path: Path,
) -> None:
    found = preflight(
        model(),
        tokenizer,
        vectors,
        reference,
        Corpus.packaged().transcripts("dev")[:4],
        quiet=True,
    )
    assert found.causal.verdict in ("missed", "not run")
    assert found.advice != "train"
    content = json.loads(found.save(tmp_path / "p.json").read_text(encoding="utf-8"))
    assert content["advice"] == found.advice
    assert [check["name"] for check in content["checks"]] == [
        *("vectors", "effect", "causal", "patching")
    ]


def test_the_command_says_it_in_lines(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: Any,
    reference: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors.save(tmp_path / "v.safetensors")
    reference.save(tmp_path / "r.safetensors")
    flags = ["--model", str(tmp_path / "model"), "--quiet", "--rounds", "1"]
    flags += ["--vectors", str(tmp_path / "v.safetensors")]
    flags += ["--reference", str(tmp_path / "r.safetensors")]
    assert main(["preflight", *flags, "--out", str(tmp_path / "p.json")]) == 0
    said = capsys.readouterr().out
    assert "Advice: " in said
    assert (tmp_path / "p.json").is_file()
