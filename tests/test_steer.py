"""Steering: against forwards edited by hand, with a cache and without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emoreg.cli import main
from emoreg.residual.layers import decoder_layers
from emoreg.residual.steer import addition, steered
from emoreg.vectors.control_vector_file import (
    read_control_vector,
    write_control_vector,
)
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.steering import (
    additions,
    at_strength,
    layer_near,
    mean_norms,
    repeated_pairs,
    steer,
)

IDS = torch.tensor([[5, 9, 17, 3, 40, 8], [7, 7, 21, 2, 11, 30]])
WIDTH, LAYER = 32, 1


def states(model: Any, ids: Tensor = IDS, **inputs: Any) -> list[Tensor]:
    """What each block hands on, by hooks that come after any that steer."""
    found: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in decoder_layers(model)]
    with torch.no_grad():
        model(ids, **inputs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_stream_is_moved_by_just_that_vector(
    tiny_model: Callable[[str], Any], family: str
) -> None:
    model, vector = tiny_model(family), torch.randn(WIDTH)
    before = states(model)
    with steered(model, {LAYER: vector}):
        after = states(model)
    torch.testing.assert_close(after[LAYER], before[LAYER] + vector)
    assert torch.equal(after[LAYER - 1], before[LAYER - 1])  # what is above it stays
    assert not torch.allclose(after[LAYER + 1], before[LAYER + 1])  # what is below not
    assert torch.equal(states(model)[-1], before[-1])  # and then it is gone


def test_two_layers_add_up(tiny_model: Callable[[str], Any]) -> None:
    model, one, two = tiny_model("llama"), torch.randn(WIDTH), torch.randn(WIDTH)
    with steered(model, {1: one, 2: two}):
        both = states(model)[2]
    with steered(model, {1: one}):
        first = states(model)[2]
    torch.testing.assert_close(both, first + two)


def test_strength_zero_is_the_model_itself_bit_for_bit(
    tiny_model: Callable[[str], Any],
) -> None:
    model = tiny_model("llama").bfloat16()
    with steered(model, {LAYER: torch.zeros(WIDTH)}):
        assert not decoder_layers(model)[LAYER]._forward_hooks
        assert torch.equal(states(model)[-1], states(model)[-1])
    with steered(model, {LAYER: torch.ones(WIDTH)}):  # control
        assert decoder_layers(model)[LAYER]._forward_hooks


def test_hooks_go_after_an_error_too(tiny_model: Callable[[str], Any]) -> None:
    model = tiny_model("llama")
    with pytest.raises(KeyError), steered(model, {LAYER: torch.ones(WIDTH)}):
        raise KeyError("inside")
    assert not any(block._forward_hooks for block in decoder_layers(model))


def test_a_cache_changes_nothing(tiny_model: Callable[[str], Any]) -> None:
    model, vector = tiny_model("llama"), 3 * torch.randn(WIDTH)
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with steered(model, {LAYER: vector}):
        cached = model.generate(IDS[:1], use_cache=True, **how)
        plain = model.generate(IDS[:1], use_cache=False, **how)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, model.generate(IDS[:1], **how))  # control


def test_padding_on_the_left_changes_nothing(tiny_model: Callable[[str], Any]) -> None:
    model, vector = tiny_model("llama"), torch.randn(WIDTH)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    mask = (torch.arange(9) >= 3).long().expand(2, -1)
    place = torch.arange(-3, 6).clamp(min=0).expand(2, -1)
    with steered(model, {LAYER: vector}):
        whole = states(model)[-1]
        part = states(model, padded, attention_mask=mask, position_ids=place)[-1]
    torch.testing.assert_close(part[:, 3:], whole, atol=1e-5, rtol=1e-4)


def test_gradients_flow_through(tiny_model: Callable[[str], Any]) -> None:
    model, vector = tiny_model("llama"), torch.randn(WIDTH)
    with steered(model, {2: vector}):
        model(IDS, labels=IDS).loss.backward()
    weight = decoder_layers(model)[0].mlp.up_proj.weight  # type: ignore[union-attr]
    assert bool(weight.grad.abs().sum() > 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("additions", "said"),
    [
        ({9: torch.ones(WIDTH)}, "must lie in"),
        ({1: torch.ones(5)}, "the model's width 32"),
        ({1: torch.full((WIDTH,), float("nan"))}, "must be a finite vector"),
    ],
)
def test_what_can_not_be_added_is_refused(
    tiny_model: Callable[[str], Any], additions: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said), steered(tiny_model("llama"), additions):
        pass


def test_strength_is_in_mean_norms() -> None:
    unit = torch.nn.functional.normalize(torch.randn(WIDTH), dim=0)
    assert float(addition(unit, strength=0.1, norm=40.0).norm()) == pytest.approx(4.0)
    for wrong in (
        {"strength": float("nan"), "norm": 1.0},
        {"strength": 1.0, "norm": 0.0},
    ):
        with pytest.raises(ValueError, match="must be a"):
            addition(unit, **wrong)


def test_norms_are_means_over_tokens(
    tiny_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    model, corpus = tiny_model("llama"), Corpus.packaged()
    found = mean_norms(model, tokenizer, corpus, (1, 3))
    for layer in (1, 3):
        each = []
        for passage in corpus.neutral("fit")[:24]:
            ids = torch.tensor([neutral_ids(tokenizer, passage)])
            if ids.shape[1] >= 50:
                each.append(states(model, ids)[layer][0, 49:].norm(dim=-1))
        assert found[layer] == pytest.approx(float(torch.cat(each).mean()), rel=1e-4)


def test_layers_share_the_strength(
    model: Callable[[], Any], vectors: EmotionVectors
) -> None:
    subject, emotion = model(), vectors.emotions[0]
    layer = vectors.layers[0]
    norms = {layer: 10.0}
    before = states(subject)[layer]
    with at_strength(subject, vectors, emotion, 0.2, norms=norms):
        after = states(subject)[layer]
    unit = vectors.direction(emotion, layer=layer)
    torch.testing.assert_close(after, before + 2.0 * unit, atol=1e-4, rtol=1e-4)
    shared = {layer: 10.0, vectors.layers[1]: 10.0}
    with at_strength(subject, vectors, emotion, 0.2, norms=shared):
        half = states(subject)[layer]
    torch.testing.assert_close(half, before + 1.0 * unit, atol=1e-4, rtol=1e-4)


def test_texts_stand_side_by_side(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
) -> None:
    subject, emotion = model(), vectors.emotions[0]
    how: dict[str, Any] = {"emotion": emotion, "prompt": "Go on.", "max_new_tokens": 8}
    found = steer(subject, tokenizer, vectors, strengths=(4.0, 0.0), **how)
    assert [text.strength for text in found] == [0.0, 4.0]
    assert found[0].greedy != found[1].greedy
    again = steer(subject, tokenizer, vectors, strengths=(4.0,), **how)
    assert again == found
    other = steer(subject, tokenizer, vectors, strengths=(4.0,), **how, seed=1)
    assert other[1].greedy == found[1].greedy
    assert other[1].sampled != found[1].sampled


def test_dropout_plays_no_part(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
) -> None:
    subject = model()
    blocks: Any = decoder_layers(subject)
    for block in blocks:
        block.self_attn.attention_dropout = 0.9
    how: dict[str, Any] = {"emotion": vectors.emotions[0], "prompt": "Go on."}
    how |= {"strengths": (), "max_new_tokens": 8}
    found = steer(subject.eval(), tokenizer, vectors, **how)
    assert steer(subject.train(), tokenizer, vectors, **how) == found
    assert subject.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "  "}, "must say something"),
        ({"emotion": "nonesuch"}, "must be one of"),
        ({"strengths": (float("inf"),)}, "finite number"),
        ({"layers": (2, 17)}, r"must be one of \(1, 2, 3\)"),
        ({"layers": (-1,)}, r"must be one of \(1, 2, 3\)"),
    ],
)
def test_wrong_input_is_refused(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    changes: dict[str, Any],
    said: str,
) -> None:
    right = {"emotion": vectors.emotions[0], "strengths": (0.1,), "prompt": "Hello."}
    with pytest.raises(ValueError, match=said):
        steer(model(), tokenizer, vectors, **(right | changes))


def test_small_things(vectors: EmotionVectors) -> None:
    assert layer_near(vectors, 4, share=0.0) == min(vectors.layers)
    assert layer_near(vectors, 4, share=9.0) == max(vectors.layers)
    assert repeated_pairs("a b c d") == 0.0
    assert repeated_pairs("a b a b a b a b") == pytest.approx(5 / 7)
    assert repeated_pairs("") == 0.0


# -- control vectors ----------------------------------------------------------


def test_a_control_vector_read_back_steers_as_ours_does(
    model: Callable[[], Any], vectors: EmotionVectors, tmp_path: Path
) -> None:
    subject, emotion = model(), vectors.emotions[0]
    norms = {layer: 7.0 + layer for layer in vectors.layers}
    ours = additions(vectors, emotion, 0.3, norms=norms)
    unit = additions(vectors, emotion, 1.0, norms=norms)
    path = write_control_vector(tmp_path / "v.gguf", unit, model_type="llama")
    back = {layer: 0.3 * vector for layer, vector in read_control_vector(path).items()}
    with steered(subject, ours):
        wanted = states(subject)
    with steered(subject, back):
        found = states(subject)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(found[-1], states(subject)[-1])  # control
    fields = GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "controlvector"
    assert fields["controlvector.layer_count"].contents() == len(norms)


def test_what_is_no_control_vector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of them 0"):
        write_control_vector(tmp_path / "v.gguf", {0: torch.ones(4)})
    (tmp_path / "v.gguf").write_bytes(b"something else")
    with pytest.raises(ValueError, match="must be a GGUF control vector"):
        read_control_vector(tmp_path / "v.gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be writable"):
        write_control_vector(tmp_path / "file" / "v.gguf", {1: torch.ones(4)})


def test_the_command_prints_and_exports(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path, emotion = vectors.save(tmp_path / "v.safetensors"), vectors.emotions[0]
    command = ["steer", "--model", str(tmp_path / "model"), "--vectors", str(path)]
    command += ["--emotion", emotion, "--prompt", "Go on.", "--max-new-tokens", "4"]
    export = ["--export", str(tmp_path / "out.gguf")]
    assert main([*command, "--strength", "0.5", *export]) == 0
    said = capsys.readouterr().out
    assert f"--- {emotion} +0, greedy" in said
    assert f"--- {emotion} +0.5, sampled" in said
    assert read_control_vector(tmp_path / "out.gguf")
    assert main([*command[:6], "nonesuch", *command[7:], "--strength", "1"]) == 2


def test_only_the_tokens_that_are_named_are_moved(
    tiny_model: Callable[[str], Any],
) -> None:
    model, vector = tiny_model("llama"), torch.randn(WIDTH)
    where = torch.zeros(IDS.shape, dtype=torch.bool)
    where[0, 2:4], where[1, 5] = True, True
    before = states(model)
    with steered(model, {LAYER: vector}, where=where):
        after = states(model)
    moved = after[LAYER] - before[LAYER]
    torch.testing.assert_close(moved, where.unsqueeze(-1) * vector)
    assert not torch.allclose(moved, vector.expand_as(moved))  # control
    # Later blocks see it from there on, and no earlier token does.
    assert torch.equal(after[-1][0, :2], before[-1][0, :2])
    assert not torch.allclose(after[-1][0, 4:], before[-1][0, 4:])
