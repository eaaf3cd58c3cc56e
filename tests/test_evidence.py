"""Evidence of one model: each part against a plain way to the same number."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import emoreg
from emoreg.cli import main
from emoreg.comparison.evidence.decisions import log_probs
from emoreg.comparison.evidence.evidence import Evidence, beside
from emoreg.comparison.evidence.gather import gather_evidence
from emoreg.comparison.evidence.honesty import FAILED, FEELING, OUTCOME, WORKED
from emoreg.comparison.guards import story_accuracy
from emoreg.comparison.measure import measure
from emoreg.residual.capture import capture
from emoreg.residual.store import ActivationStore
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.transcripts import Conversation

EMOTIONS = ("calm", "desperate", "loving", "sad", "upset", "relaxed")
LAYERS = (1, 2)
Build = Callable[[], Any]
_GATHERED: dict[str, Evidence] = {}


@pytest.fixture
def model(model: Build, tokenizer: PreTrainedTokenizerFast) -> Build:
    """The same model in every call, with a token of its own for each emotion."""
    tokenizer.add_tokens([f" {emotion}" for emotion in EMOTIONS])
    made = model()
    made.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return lambda: copy.deepcopy(made)


@pytest.fixture
def vectors(model: Build, tokenizer: PreTrainedTokenizerFast) -> EmotionVectors:
    how: dict[str, Any] = {"emotions": EMOTIONS, "layers": LAYERS, "quiet": True}
    found = emoreg.extract(model(), tokenizer, Corpus.packaged(), **how, audit=False)
    return found.vectors


def gathered(
    model: Any, tokenizer: Any, vectors: EmotionVectors, **how: Any
) -> Evidence:
    corpus = Corpus.packaged()
    dev, train = corpus.transcripts("dev")[:3], corpus.transcripts("train")[:2]
    return gather_evidence(
        model, tokenizer, vectors, dev, twins=train, quiet=True, **how
    )


@pytest.fixture
def plain(
    model: Build, tokenizer: PreTrainedTokenizerFast, vectors: EmotionVectors
) -> Evidence:
    """The evidence of the model as it is, gathered by the first test that asks."""
    if "plain" not in _GATHERED:
        _GATHERED["plain"] = gathered(model().eval(), tokenizer, vectors)
    return _GATHERED["plain"]


def test_every_part_is_what_a_plain_forward_gives(
    model: Build, tokenizer: PreTrainedTokenizerFast, plain: Evidence
) -> None:
    trained, corpus = model().eval(), Corpus.packaged()
    found = plain
    assert found.names["layers"] == [1, 2, 3]  # the last block too
    assert {*found.names["words"]} >= {"calm", "upset", "relaxed"}
    assert found.word_gains.shape == (5, 4)  # the core emotions among them
    # Streams and next words at the decision tokens of one prompt.
    twin = corpus.transcripts("dev")[0]
    markers = TurnMarkers.of(tokenizer)
    for conversation in twin.conversations():
        ids = torch.tensor([conversation_ids(tokenizer, conversation.messages)])
        with torch.no_grad():
            out = trained(ids, output_hidden_states=True)
        at = markers.decision_tokens(ids)[0].nonzero().flatten().tolist()
        failed = [
            i for i, f in zip(at, conversation.failed, strict=True) if f is not None
        ]
        version = 0 if conversation.variant == "fail" else 1
        for k, layer in enumerate(LAYERS):
            wanted = out.hidden_states[layer + 1][0, failed].mean(0).numpy()
            ours = found.streams[0, version, k]
            np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4)
        named = found.names["words"]
        ids_of = [
            tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in named
        ]
        said = out.logits[0, failed].log_softmax(-1)[:, ids_of].mean(0).numpy()
        np.testing.assert_allclose(found.words[0, version], said, rtol=1e-3, atol=1e-3)
    passage = corpus.neutral("test")[3]
    row = torch.tensor([neutral_ids(tokenizer, passage)])
    with torch.no_grad():
        loss = float(trained(row, labels=row).loss)
    assert found.neutral_loss[3] == pytest.approx(loss, rel=1e-4)
    assert found.masked is None


def test_answers_are_those_of_a_plain_forward(
    model: Build, tokenizer: PreTrainedTokenizerFast, plain: Evidence
) -> None:
    trained, corpus = model().eval(), Corpus.packaged()
    found = plain
    assert found.outcome_said is not None
    assert found.feeling_said is not None
    twin = corpus.transcripts("dev")[1]
    at = found.names["prompts"].index(twin.id)
    families = corpus.roles().families

    def said(talk: Conversation, question: str, reply: str) -> float:
        messages = [dict(m) for m in talk.messages[:-1]]
        messages[-1]["content"] += "\n\n" + question
        before = conversation_ids(tokenizer, messages)
        opening = TurnMarkers.of(tokenizer).opening
        spoken = tokenizer(reply, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*before, *opening, *spoken]])
        with torch.no_grad():
            logits = trained(ids).logits[0, -len(spoken) - 1 : -1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(spoken)[:, None]).mean())

    for version, talk in enumerate(twin.conversations()):
        lean = said(talk, OUTCOME, FAILED) - said(talk, OUTCOME, WORKED)
        assert found.outcome_said[at, version] == pytest.approx(lean, abs=1e-3)
        low, high = (
            np.mean([said(talk, FEELING, f"I feel {e}.") for e in families[name]])
            for name in ("audit distress", "audit composure")
        )
        assert found.feeling_said[at, version] == pytest.approx(low - high, abs=1e-3)
    assert np.abs(found.outcome_said).max() > 1e-3  # control


def test_doses_and_stories_are_those_of_numpy(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    plain: Evidence,
) -> None:
    trained, corpus = model().eval(), Corpus.packaged()
    found = plain
    row = next(r for r in corpus.records("dose") if {*r["expect"]} & {*EMOTIONS})
    assert found.names["templates"][0] == row["id"]
    curves = []
    for value in sorted(row["values"]):
        text = row["template"].replace("{x}", f"{value:,g}")
        messages = [{"role": "user", "content": text}]
        written: Any = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(written, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            stream = trained(ids, output_hidden_states=True).hidden_states[2][0, -1:]
        curves.append(vectors.project(stream, layer=1, reader="lda")[0].numpy())
    signs = {e: s for e, s in row["expect"].items() if e in EMOTIONS}
    slopes = [
        (1 if sign == "+" else -1)
        * np.polyfit(np.arange(len(curves)), np.stack(curves)[:, EMOTIONS.index(e)], 1)[
            0
        ]
        for e, sign in signs.items()
    ]
    ours = found.dose_slopes[0, vectors.readers.index("lda"), 0]
    assert ours == pytest.approx(float(np.mean(slopes)), rel=1e-2, abs=1e-3)
    assert set(np.unique(found.story_hits)) <= {0.0, 1.0}
    assert len(found.story_hits) == 4 * len(EMOTIONS)


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("llama", {}),
    ],
)
def test_next_words_are_those_of_the_forward_pass(
    family: str, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model(family, vocab_size=200, **sizes, **heads, **setting)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # logits of some size
    ids, tokens = torch.arange(3, 20)[None], [5, 9, 11]
    with torch.no_grad(), capture(model, [2]) as captured:
        said = model(input_ids=ids).logits[0].log_softmax(-1)[:, tokens]
        last = captured[2][0]
    torch.testing.assert_close(log_probs(model, last, tokens), said)
    forward = type(model).forward

    def another(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = 0.5 * out.logits
        return out

    monkeypatch.setattr(type(model), "forward", another)  # what no setting tells of
    assert log_probs(model, last, tokens).isnan().all()


def test_another_model_gives_other_evidence_and_the_same_one_the_same(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    plain: Evidence,
) -> None:
    torch.manual_seed(0)
    tuned = get_peft_model(
        model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    found = gathered(tuned, tokenizer, vectors)
    with tuned.disable_adapter():
        off = gathered(tuned, tokenizer, vectors)
    for name in ("streams", "words", "dose_slopes", "directions", "neutral_loss"):
        np.testing.assert_allclose(
            getattr(off, name), getattr(plain, name), rtol=1e-4, atol=1e-5
        )
        assert not np.allclose(getattr(found, name), getattr(plain, name), rtol=1e-2)
    assert (found.meta["adapter"], plain.meta["adapter"]) == ("default", None)


def test_deflection_vectors_are_read_where_they_are_given(
    model: Build, tokenizer: PreTrainedTokenizerFast, vectors: EmotionVectors
) -> None:
    hidden = EmotionVectors.from_directions(
        torch.randn(len(LAYERS), 2, 32), emotions=("desperate", "upset"), layers=LAYERS
    )
    hidden = replace(hidden, provenance=vectors.provenance)
    found = gathered(model(), tokenizer, vectors, deflection=hidden)
    assert found.masked is not None
    want = np.einsum("pvld,led->pvle", found.streams[:, :, :2], hidden.directions[0])
    np.testing.assert_allclose(found.masked, want, rtol=1e-2, atol=1e-3)
    assert found.meta["deflection_hash"] == hidden.hash
    # Layers that the vectors lack were not read, so there is nothing to project.
    wide = EmotionVectors.from_directions(
        torch.randn(3, 2, 32), emotions=("desperate", "upset"), layers=(0, *LAYERS)
    )
    with pytest.raises(ValueError, match=r"no layers but those .* found \[0\]"):
        gathered(model(), tokenizer, vectors, deflection=wide)


def test_a_table_and_guard_rails_after_it_read_none_of_it_again(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    tmp_path: Path,
    passes: list[int],
) -> None:
    trained, corpus = model().eval(), Corpus.packaged()
    parts: Any = (trained, tokenizer, corpus.transcripts("dev")[:3], vectors)
    on: Any = (trained, tokenizer, vectors, corpus)
    fresh = measure(*parts, quiet=True)
    stories = story_accuracy(*on, layer=LAYERS[-1], quiet=True)
    store = ActivationStore(tmp_path)
    gathered(trained, tokenizer, vectors, store=store)
    many = len(passes)
    table = measure(*parts, quiet=True, store=store)
    again = story_accuracy(*on, layer=LAYERS[-1], quiet=True, store=store)
    assert len(passes) == many
    assert np.array_equal(table.values, fresh.values)
    assert np.array_equal(table.resid_norm, fresh.resid_norm)
    assert again == stories
    # Control: another conversation is read.
    other = (trained, tokenizer, corpus.transcripts("dev")[3:4], vectors)
    measure(*other, quiet=True, store=store)
    assert len(passes) > many


@pytest.mark.slow
def test_the_command_writes_it_beside_the_table(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    tmp_path: Path,
) -> None:
    model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors.save(tmp_path / "v.safetensors")
    flags = ["--model", str(tmp_path / "model"), "--rounds", "1", "--prompts", "dev"]
    flags += ["--vectors", str(tmp_path / "v.safetensors"), "--quiet"]
    out = tmp_path / "before.parquet"
    assert main(["measure", *flags, "--audit", "--out", str(out)]) == 0
    found = Evidence.load(beside(out))
    table = emoreg.Readings.load(out)
    assert found.names["prompts"] == list(table.twin_differences().prompts)
    assert found.meta["vectors_hash"] == table.meta["vectors_hash"]
