"""Captured streams are what the model computes, and capturing changes nothing."""

import math
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import FAMILIES, NUM_LAYERS
from torch import Tensor
from transformers import PreTrainedModel

from emoreg.residual.batches import CALL_SHARE, Batch, read_stream, token_batches
from emoreg.residual.capture import Captured, capture, run_truncated, truncated
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import backbone, decoder_layers

Build = Callable[[str], PreTrainedModel]
LAST = NUM_LAYERS - 1
EVERY = range(NUM_LAYERS)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 200, (3, 17))


def hook_count(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def streams(captured: Captured) -> dict[int, Tensor]:
    return {layer: captured[layer] for layer in captured.layers}


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_stream_is_bitwise_the_models_own(
    tiny_model: Build, ids: Tensor, family: str
) -> None:
    model = tiny_model(family)
    last: list[Tensor] = []

    def keep(_module: object, _args: object, output: Tensor | tuple) -> None:
        last.append(output if isinstance(output, Tensor) else output[0])

    handle = decoder_layers(model)[LAST].register_forward_hook(keep)
    with capture(model, EVERY) as captured:
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(LAST):
            assert torch.equal(captured[layer], hidden[layer + 1])
            assert not torch.equal(captured[layer], hidden[layer])  # control: off by 1
        assert torch.equal(captured[LAST], last[0])
        # `hidden_states[-1]` is after the final norm, which is why it is no oracle.
        assert not torch.equal(captured[LAST], hidden[LAST + 1])
    handle.remove()


@torch.no_grad()
def test_negative_layers_count_from_the_end(tiny_model: Build, ids: Tensor) -> None:
    model = tiny_model("llama")
    with capture(model, [-1, 0]) as captured:
        model(input_ids=ids)
        assert captured.layers == (0, LAST)
        assert -1 not in captured


def test_streams_are_where_they_are_asked_for(tiny_model: Build, ids: Tensor) -> None:
    """A model over several devices: its blocks' output must meet one batch's mask."""
    model = tiny_model("llama")
    elsewhere = torch.device("meta")
    with torch.no_grad(), capture(model, [1], device=elsewhere) as captured:
        model(input_ids=ids)
        assert captured[1].device == elsewhere
    places = []

    def consume(batch: Batch, captured: Captured) -> None:
        places.append((captured.device, batch.input_ids.device))

    read_stream(model, ids.tolist(), [1], consume, quiet=True)
    assert places == [(ids.device, ids.device)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hooks_are_gone_after_an_exception(
    tiny_model: Build, ids: Tensor, family: str
) -> None:
    model = tiny_model(family)
    before, kept = hook_count(model), []

    def interrupted() -> None:
        with capture(model, EVERY) as captured, truncated(model, 2):
            run_truncated(backbone(model), input_ids=ids)
            assert hook_count(model) == before + NUM_LAYERS + 1  # control: they count
            assert 2 in captured
            kept.append(captured)
            raise RuntimeError("from within")

    with pytest.raises(RuntimeError, match="from within"):
        interrupted()
    assert hook_count(model) == before
    assert 2 not in kept[0]  # and no tensor is held


def test_an_exception_of_the_model_is_not_swallowed(tiny_model: Build) -> None:
    model = tiny_model("llama")
    with truncated(model, 1), pytest.raises(IndexError):
        run_truncated(backbone(model), input_ids=torch.tensor([[10_000]]))
    assert hook_count(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_flows_with_and_without_checkpointing(
    tiny_model: Build, ids: Tensor, family: str
) -> None:
    found = {}
    for checkpointing in (False, True):
        model = tiny_model(family)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        calls: list[object] = []

        def count(_part: object, args: object, calls: list = calls) -> None:
            calls.append(args)

        part = next(decoder_layers(model)[1].children())
        part.register_forward_pre_hook(count)
        with capture(model, [1, 2], gradient=True) as captured:
            loss = model(input_ids=ids, labels=ids).loss
            kept = streams(captured)
        # The hooks are gone before backward, as they are in a trainer.
        assert all(stream.requires_grad for stream in kept.values())
        (loss + sum(stream.square().mean() for stream in kept.values())).backward()
        assert len(calls) == 1 + checkpointing  # control: it was computed again
        found[checkpointing] = gradients(model)
    plain, checkpointed = found[False], found[True]
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in plain.values())


def test_the_stream_brings_gradient_to_blocks_below_it_only(
    tiny_model: Build, ids: Tensor
) -> None:
    model = tiny_model("qwen3")
    with capture(model, [1]) as captured:
        model(input_ids=ids)
        captured[1].square().mean().backward()
    reached = [
        any(p.grad is not None and bool(p.grad.any()) for p in block.parameters())
        for block in decoder_layers(model)
    ]
    assert reached == [True, True, False, False]


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_the_loss_is_bitwise_the_same(
    tiny_model: Build, ids: Tensor, family: str
) -> None:
    found = []
    for capturing in (False, True):
        model = tiny_model(family)
        layers = EVERY if capturing else [0]
        with capture(model, layers, gradient=True) as captured:
            loss = model(input_ids=ids, labels=ids).loss
            assert (LAST in captured) == capturing
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    (bare, bare_gradients), (watched, watched_gradients) = found
    assert torch.equal(bare, watched)
    assert all(torch.equal(g, watched_gradients[n]) for n, g in bare_gradients.items())
    # Control: a hook that does touch the stream is noticed.
    model = tiny_model(family)
    decoder_layers(model)[1].register_forward_hook(
        lambda _module, _args, out: (
            out * 1.2 if isinstance(out, Tensor) else (out[0] * 1.2, *out[1:])
        )
    )
    assert not torch.equal(model(input_ids=ids, labels=ids).loss, bare)


def test_passes_without_gradient_are_ignored_when_asked(
    tiny_model: Build, ids: Tensor
) -> None:
    model = tiny_model("llama")
    other = ids.flip(1)
    with capture(model, [1], gradient=True) as captured:
        with torch.no_grad():
            model(input_ids=other)
        assert 1 not in captured
        with pytest.raises(KeyError, match=r"layer 1 must have been captured.*\[\]"):
            captured[1]
        model(input_ids=ids)
        kept = captured[1]
        with torch.no_grad():
            model(input_ids=other)
        assert captured[1] is kept
    with capture(model, [1]) as captured, torch.no_grad():  # control: not asked
        model(input_ids=other)
        assert not torch.equal(captured[1], kept)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_truncated_run_leaves_the_same_stream(
    tiny_model: Build, ids: Tensor, family: str
) -> None:
    model = tiny_model(family)
    logits = model(input_ids=ids).logits
    with capture(model, [0, 2]) as captured:
        model(input_ids=ids)
        whole = streams(captured)
    with capture(model, EVERY) as captured, truncated(model, 2):
        run_truncated(backbone(model), input_ids=ids)
        assert LAST not in captured  # control: it did stop
        for layer, stream in whole.items():
            assert torch.equal(captured[layer], stream)
    assert torch.equal(model(input_ids=ids).logits, logits)


def read(model: PreTrainedModel, texts: list[list[int]], budget: int) -> list[Tensor]:
    """Return each text's stream at block 2, without padding."""
    found: dict[int, Tensor] = {}

    def consume(batch: Batch, captured: Captured) -> None:
        for k, row in enumerate(batch.rows):
            found[row] = captured[2][k, : len(texts[row])].clone()

    read_stream(model, texts, [2], consume, budget=budget, quiet=True)
    return [found[row] for row in range(len(texts))]


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "gpt_neox"])
def test_reading_in_batches_equals_reading_one_by_one(
    tiny_model: Build, family: str
) -> None:
    model = tiny_model(family)
    texts = [torch.randint(1, 200, (n,)).tolist() for n in (5, 31, 12, 1, 30)]
    alone = read(model, texts, budget=1)
    for together in (read(model, texts, budget=64), read(model, texts, budget=4096)):
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[1][:5], alone[0], atol=1e-2)  # control


def test_batches_hold_each_text_once_within_the_budget() -> None:
    texts = [list(range(1, n + 1)) for n in (3, 50, 7, 7, 20, 1)]
    batches = list(token_batches(texts, budget=40, pad_id=0))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(6))
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    for batch in batches:
        # One text longer than the budget still has to be read.
        assert batch.input_ids.numel() <= 40 or len(batch.rows) == 1
        for k, row in enumerate(batch.rows):
            real = batch.attention_mask[k].bool()
            assert batch.input_ids[k][real].tolist() == texts[row]
            assert not batch.input_ids[k][~real].any()


def _ways(count: int) -> Iterator[list[int]]:
    """Yield every way to cut a row of `count` things."""
    if count == 0:
        yield []
    for first in range(1, count + 1):
        for rest in _ways(count - first):
            yield [first, *rest]


@pytest.mark.parametrize("seed", range(8))
def test_no_way_to_cut_batches_is_cheaper(seed: int) -> None:
    draw, budget = random.Random(seed), 96
    widths = sorted((draw.randint(1, 60) for _ in range(10)), reverse=True)

    def cost(sizes: list[int]) -> float:
        tokens, start = 0, 0
        for size in sizes:
            if size > 1 and size * widths[start] > budget:
                return math.inf
            tokens, start = tokens + size * widths[start], start + size
        return tokens + len(sizes) * (budget // CALL_SHARE)

    texts = [[1] * width for width in widths]
    made = [len(b.rows) for b in token_batches(texts, budget=budget, pad_id=0)]
    assert cost(made) == min(cost(way) for way in _ways(len(widths)))
    assert cost(made) < cost([1] * len(widths))  # control: it does matter


def test_every_module_gets_its_own_mode_back(tiny_model: Build) -> None:
    model = tiny_model("llama").train()
    held = decoder_layers(model)[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == before
    assert not held.training
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_reading_leaves_the_mode_as_it_was(tiny_model: Build, training: bool) -> None:
    model = tiny_model("llama").train(training)
    modes: list[bool] = []
    read_stream(
        model,
        [[1, 2, 3]],
        [0],
        lambda *_: modes.append(model.training),
        quiet=True,
    )
    assert modes == [False]
    assert model.training is training


@pytest.mark.parametrize(("layer", "value"), [(1, torch.inf), (3, torch.nan)])
def test_activations_that_are_not_finite_are_refused(
    tiny_model: Build, layer: int, value: float
) -> None:
    model = tiny_model("llama")
    texts = [[8] * 4, [9] * 3, [7] * 9]
    read_stream(model, texts, [1, 3], lambda *_: None, quiet=True)  # control

    def spoil(_module: object, _args: object, output: Tensor) -> Tensor:
        spoiled = output.clone()
        spoiled[2, 1] = value  # longest first, so the third row is the second text
        return spoiled

    decoder_layers(model)[layer].register_forward_hook(spoil)
    message = f"found NaN or infinity at layer {layer} in text 1. Load the model in"
    with pytest.raises(FloatingPointError, match=message):
        read_stream(model, texts, [1, 3], lambda *_: None, quiet=True)
    assert hook_count(model) == 1  # the spoiling one


def test_what_stands_at_padding_is_not_judged(tiny_model: Build) -> None:
    model = tiny_model("llama")

    def spoil(_module: object, _args: object, output: Tensor) -> Tensor:
        spoiled = output.clone()
        spoiled[1, 2:] = torch.nan  # the second text has two tokens
        return spoiled

    decoder_layers(model)[1].register_forward_hook(spoil)
    read_stream(model, [[7] * 9, [8] * 2], [1], lambda *_: None, quiet=True)
    with pytest.raises(FloatingPointError, match="layer 1 in text 1"):
        read_stream(model, [[7] * 9, [8] * 3], [1], lambda *_: None, quiet=True)
