"""Activations on disk: what is read back is what a new run gives, bit for bit."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerFast

from emoreg.residual.layers import decoder_layers
from emoreg.residual.pooling import Passage, read_share, span_means
from emoreg.residual.processes import Share
from emoreg.residual.steer import steered
from emoreg.residual.store import ActivationStore, model_hash
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import extract

LAYERS = (0, 2)
EMOTIONS = ("calm", "desperate", "sad", "proud")


def passages() -> list[Passage]:
    made = []
    for row in range(17):
        length = 3 + (row * 7) % 23
        ids = tuple(int(x) for x in torch.randint(0, 250, (length,)))
        made.append(Passage(ids=ids, spans=((0, length), (length - 1, length))))
    return made


def means(model: Any, texts: list[Passage], store: ActivationStore | None) -> Any:
    return span_means(model, texts, LAYERS, budget=64, quiet=True, store=store)


def test_a_second_run_reads_nothing_and_gives_the_same_bits(
    model: Callable[[], Any], tmp_path: Path, passes: list[int]
) -> None:
    texts, store = passages(), ActivationStore(tmp_path / "kept")
    fresh = means(model(), texts, None)
    first = means(model(), texts, store)
    many = len(passes)
    again = means(model(), texts, store)
    assert len(passes) == many
    assert torch.equal(first, fresh)
    assert torch.equal(again, fresh)
    # Control: another text in a batch, and what is beside it is read anew.
    other = [Passage(ids=(*texts[0].ids[:-1], 9), spans=texts[0].spans), *texts[1:]]
    means(model(), other, store)
    assert many < len(passes) < 2 * many


def test_what_was_read_at_more_layers_serves_for_fewer(
    model: Callable[[], Any], tmp_path: Path, passes: list[int]
) -> None:
    texts, store = passages(), ActivationStore(tmp_path / "kept")
    how: dict[str, Any] = {"budget": 64, "quiet": True}
    wide = span_means(model(), texts, (0, 1, 2), **how, store=store)
    many = len(passes)
    narrow = span_means(model(), texts, (2, 0), **how, store=store)
    assert len(passes) == many
    assert torch.equal(narrow, wide[:, [0, 2]])
    assert torch.equal(narrow, span_means(model(), texts, (0, 2), **how))
    # Control: a layer that was not read is.
    more = span_means(model(), texts, (0, 3), **how, store=store)
    assert torch.equal(more, span_means(model(), texts, (0, 3), **how))
    assert len(passes) == 4 * many


def test_what_was_computed_is_recalled_by_all_that_it_depends_on(
    tmp_path: Path,
) -> None:
    store, made = ActivationStore(tmp_path), []

    def recalled(*parts: Any) -> tuple[torch.Tensor, ...]:
        def compute() -> list[torch.Tensor]:
            made.append(parts)
            return [torch.arange(6.0)[::2], torch.ones(2, 3)]

        return store.recall(store.key("model", *parts), compute)

    base = ("steered", [1, 2], torch.tensor([0.0, 1.0]))
    first, again = recalled(*base), recalled(*base)
    assert len(made) == 1
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    changed = torch.tensor([0.0, 1.0 + 1e-7])
    for other in (
        ("steered", [1, 2], changed),
        ("steered", [1, 2], base[2].double()),
        ("steered", [1, 2], base[2].reshape(1, 2)),
        ("steered", [1, 3], base[2]),
        ("answer", [1, 2], base[2]),
    ):
        recalled(*other)
    assert len(made) == 6


def test_where_the_folder_is_plays_no_part(
    model: Callable[[], Any], tmp_path: Path, passes: list[int]
) -> None:
    texts = passages()
    means(model(), texts, ActivationStore(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    passes.clear()
    means(model(), texts, ActivationStore(tmp_path / "two"))
    assert passes == []


@pytest.mark.parametrize("at", [1, -1])
def test_a_run_that_was_cut_off_goes_on(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[int],
    at: int,
) -> None:
    corpus, store = Corpus.packaged(), ActivationStore(tmp_path / "parts")

    def vectors(store: ActivationStore | None) -> Any:
        how: dict[str, Any] = {"emotions": EMOTIONS, "layers": LAYERS, "quiet": True}
        return extract(model(), tokenizer, corpus, **how, store=store).vectors

    whole = vectors(None)
    many = len(passes)
    put, count = ActivationStore.put, 0

    def cut(self: ActivationStore, key: str, values: Any) -> None:
        nonlocal count
        count += 1
        if count == at % 20 + 1:
            raise KeyboardInterrupt
        put(self, key, values)

    monkeypatch.setattr(ActivationStore, "put", cut)
    with pytest.raises(KeyboardInterrupt):
        vectors(store)
    monkeypatch.setattr(ActivationStore, "put", put)
    passes.clear()
    resumed = vectors(store)
    assert resumed.hash == whole.hash
    assert len(passes) == many - (count - 1)
    for name in ("directions", "centre", "scale", "offset"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))


def test_a_broken_file_is_made_anew(
    model: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts, store = passages(), ActivationStore(tmp_path)
    first = means(model(), texts, store)
    one, two, *_ = sorted(tmp_path.glob("*.pt"))
    one.write_bytes(one.read_bytes()[:100])
    two.write_bytes(one.with_name(sorted(tmp_path.glob("*.pt"))[-1].name).read_bytes())
    assert torch.equal(means(model(), texts, store), first)
    assert "can't be read" in caplog.text
    assert "holds another batch" in caplog.text
    caplog.clear()
    means(model(), texts, store)
    assert caplog.text == ""  # both are whole again


def test_the_hash_is_of_all_that_decides(model: Callable[[], Any]) -> None:
    found = {"plain": model_hash(model())}
    assert model_hash(model()) == found["plain"]
    nudged = model()
    with torch.no_grad():
        next(iter(nudged.parameters()))[0, 0] += 1e-3
    found["a weight"] = model_hash(nudged)
    found["dtype"] = model_hash(model().bfloat16())
    adapted = get_peft_model(model(), LoraConfig(target_modules=["q_proj"], r=2))
    found["an adapter"] = model_hash(adapted)
    with adapted.disable_adapter():
        found["one that does not act"] = model_hash(adapted)
    layers = [part for part in adapted.modules() if isinstance(part, LoraLayer)]
    for layer in layers:
        layer.scale_layer(0.1)
    found["one that acts less"] = model_hash(adapted)
    for layer in layers:
        layer.unscale_layer()
    changed = model()
    changed.config.rms_norm_eps = 1e-2
    found["configuration"] = model_hash(changed)
    assert len(set(found.values())) == len(found), found
    assert model_hash(adapted) == found["an adapter"]


def test_a_steered_model_is_not_kept(
    model: Callable[[], Any], tmp_path: Path, passes: list[int]
) -> None:
    subject, texts, store = model(), passages(), ActivationStore(tmp_path)
    plain = means(subject, texts, store)
    with steered(subject, {0: torch.ones(32)}):
        assert model_hash(subject) is None
        moved = means(subject, texts, store)
    assert not torch.allclose(moved, plain)
    passes.clear()
    assert torch.equal(means(subject, texts, store), plain)
    assert passes == []


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
@pytest.mark.parametrize("at", ["", "mlp", "self_attn.q_proj"])
def test_a_hook_in_any_part_of_a_block_means_no_hash(
    model: Callable[[], Any], at: str, kind: str
) -> None:
    subject = model()
    part = decoder_layers(subject)[1].get_submodule(at)
    handle = getattr(part, f"register_{kind}")(lambda *_: None)
    assert model_hash(subject) is None
    handle.remove()
    assert model_hash(subject) == model_hash(model())  # control: it is gone


def test_weights_that_lie_elsewhere_have_no_hash(
    model: Callable[[], Any], tmp_path: Path
) -> None:
    offloaded = model()
    decoder_layers(offloaded)[3].to("meta")
    assert model_hash(offloaded) is None
    # The layers below can be read all the same; nothing is kept of them.
    found = means(offloaded, passages(), ActivationStore(tmp_path / "kept"))
    assert found.isfinite().all()
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        ActivationStore(tmp_path / "file" / "kept")


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """SIGKILL, which no program can catch, while stories are read."""
    folder = tmp_path / "model"
    model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    command = [sys.executable, "-m", "emoreg.cli", "extract", "--model", str(folder)]
    command += ["--quiet", "--layers", "0", "2", "--emotions", *EMOTIONS]

    def path(name: str) -> Path:
        return tmp_path / f"{name}.safetensors"

    subprocess.run([*command, "--out", str(path("whole"))], check=True)
    parts = tmp_path / "cut.safetensors.parts"
    running = subprocess.Popen([*command, "--out", str(path("cut"))])
    while len(list(parts.glob("*.pt"))) < 2 and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not path("cut").exists()
    assert len(list(parts.glob("*.pt"))) >= 2
    resumed = [*command, "--out", str(path("cut")), "--resume"]
    subprocess.run(resumed, check=True)
    one, other = (EmotionVectors.load(path(name)) for name in ("cut", "whole"))
    assert one.hash == other.hash
    assert one.provenance == other.provenance
    assert not parts.exists()


# -- several processes --------------------------------------------------------


def test_shares_together_are_the_whole(
    model: Callable[[], Any], tmp_path: Path, passes: list[int]
) -> None:
    texts, store = passages(), ActivationStore(tmp_path)
    whole = means(model(), texts, None)
    many = len(passes)
    counts = []
    for process in range(3):
        passes.clear()
        share = Share(process=process, processes=3)
        how: dict[str, Any] = {"store": store, "share": share, "budget": 64}
        read_share(model(), texts, LAYERS, **how, quiet=True)
        counts.append(len(passes))
    assert sum(counts) == many
    assert max(counts) - min(counts) <= 1
    passes.clear()
    assert torch.equal(means(model(), texts, store), whole)
    assert passes == []


@pytest.mark.slow
def test_two_processes_extract_what_one_does(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Really two, as a user launches them, on one folder."""
    folder = tmp_path / "model"
    model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    command = ["-m", "emoreg.cli", "extract", "--model", str(folder), "--quiet"]
    command += ["--layers", "0", "2", "--emotions", *EMOTIONS]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(free_port())]
    for name, how in (("one", []), ("two", launch)):
        out = ["--out", str(tmp_path / f"{name}.safetensors")]
        done = subprocess.run(
            [sys.executable, *how, *command, *out],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.stdout.count("emotions at layers") == 1
    one, two = (
        EmotionVectors.load(tmp_path / f"{n}.safetensors") for n in ("one", "two")
    )
    assert one.hash == two.hash
    assert one.provenance == two.provenance
    assert not (tmp_path / "two.safetensors.parts").exists()


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("", 0))
        return opened.getsockname()[1]


def test_a_full_disk_is_said_and_keeps_what_there_is(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "kept")
    store.put("before", torch.ones(2, 1, 4))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match="must have room for activations"):
            store.put("large", torch.ones(2000, 1, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in store.folder.iterdir()] == ["before.pt"]
    kept = store.get("before")
    assert kept is not None
    assert torch.equal(kept, torch.ones(2, 1, 4))
    store.put("large", torch.ones(2000, 1, 4))  # control: with room it is kept
    assert store.get("large") is not None
