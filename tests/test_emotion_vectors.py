"""Emotion vectors: exact on disk, whole or not at all, and they refuse strangers."""

import json
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.tensor_files import load_tensors

EMOTIONS = ("calm", "desperate", "at ease", "proud")
LAYERS = (2, 5, 9)
READERS = ("mean-difference", "lda")
WIDTH = 16
TENSORS = ("directions", "centre", "raw_norm", "scale", "offset")
PROVENANCE = {"model": "maker/one", "num_layers": 12, "notes": ["é", None, 0.1]}


@pytest.fixture
def vectors() -> EmotionVectors:
    directions = torch.randn(len(READERS), len(LAYERS), len(EMOTIONS), WIDTH)
    shape = directions.shape[:3]
    return EmotionVectors(
        directions=directions / directions.norm(dim=-1, keepdim=True),
        readers=READERS,
        layers=LAYERS,
        emotions=EMOTIONS,
        centre=torch.randn(len(LAYERS), WIDTH),
        raw_norm=torch.rand(shape[1:]) + 0.1,
        scale=torch.rand(shape),
        offset=torch.randn(shape),
        provenance=PROVENANCE,
    )


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_same(one: EmotionVectors, other: EmotionVectors) -> None:
    for name in TENSORS:
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype, name
        assert torch.equal(first, second), name
    for name in ("readers", "layers", "emotions", "provenance"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.hash == other.hash


def test_a_saved_file_comes_back_exactly(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "er" / "v.safetensors"
    assert vectors.save(path) == path
    check_same(EmotionVectors.load(path), vectors)
    check_same(EmotionVectors.load(str(path)), vectors)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(AssertionError):  # control: the check sees one changed bit
        check_same(replace(vectors, centre=vectors.centre + 1e-6), vectors)


def test_a_part_can_be_saved(vectors: EmotionVectors, tmp_path: Path) -> None:
    part = vectors.subset(["proud", "calm"])
    check_same(EmotionVectors.load(part.save(tmp_path / "p.safetensors")), part)


def test_a_colleague_can_read_the_file(vectors: EmotionVectors, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("made the ordinary way")
    path = vectors.save(tmp_path / "v.safetensors")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_an_interrupted_save_leaves_the_old_file_whole(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    path = vectors.save(tmp_path / "v.safetensors")
    changed = replace(vectors, centre=vectors.centre + 1)
    with disk_full_after(2000):
        # Control: such a write does fail, and half way.
        with pytest.raises(OSError, match="File too large"):
            (tmp_path / "other").write_bytes(bytes(4000))
        with pytest.raises(SafetensorError, match="File too large"):
            changed.save(path)
    assert (tmp_path / "other").stat().st_size == 2000
    (tmp_path / "other").unlink()
    check_same(EmotionVectors.load(path), vectors)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    changed.save(path)  # control: with room it is replaced
    check_same(EmotionVectors.load(path), changed)


def test_a_save_that_cannot_be_described_leaves_the_old_file_whole(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    path = vectors.save(tmp_path / "v.safetensors")
    with pytest.raises(TypeError, match="not JSON serializable"):
        replace(vectors, provenance={"when": object()}).save(path)
    check_same(EmotionVectors.load(path), vectors)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_named(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "v.safetensors"
    with pytest.raises(
        ValueError, match=r"the folder of '.*' must be writable: .*Pass"
    ):
        vectors.save(path)


def test_files_that_are_not_vectors_are_refused(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    path = vectors.save(tmp_path / "v.safetensors")
    missing = tmp_path / "none.safetensors"
    made_by = r"must be a file made by `emoreg extract`; there is none"
    for nothing in (missing, tmp_path):
        with pytest.raises(ValueError, match=f"'{nothing}' {made_by}"):
            EmotionVectors.load(nothing)

    content = path.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for piece in (content[:-100], content[:200], content[:4], b"", b"x" * 500):
        broken.write_bytes(piece)
        message = f"'{broken}' must be a whole safetensors file: .*Make it again with"
        with pytest.raises(ValueError, match=message):
            EmotionVectors.load(broken)
    broken.write_bytes(content)  # control
    check_same(EmotionVectors.load(broken), vectors)

    for metadata, found in (({"format": "emoreg.reference/1"}, "emoreg.reference/1"),
                            (None, None)):  # fmt: skip
        save_file({"x": torch.zeros(1)}, broken, metadata)
        message = f"have the format 'emoreg.vectors/1', found {found!r}. Make it with"
        with pytest.raises(ValueError, match=message):
            EmotionVectors.load(broken)
    tensors, metadata = load_tensors(path, "emoreg.vectors/1", "emoreg extract")
    assert set(tensors) == set(TENSORS) == set(load_file(path))
    assert json.loads(metadata["provenance"]) == PROVENANCE


@pytest.mark.parametrize(
    ("model", "what", "here", "there"),
    [
        ({"d_model": 32}, r"width \(d_model\)", "16", "32"),
        ({"num_layers": 30}, "number of layers", "12", "30"),
        ({"name": "maker/two"}, "model", "maker/one", "maker/two"),
    ],
)
def test_another_model_is_refused_with_both_values(
    vectors: EmotionVectors, model: dict, what: str, here: str, there: str
) -> None:
    own: dict = {"d_model": WIDTH, "num_layers": 12}
    vectors.check_model(**own)  # control
    vectors.check_model(**own, name="maker/one")
    message = f"their {what} is {here}, the model's is {there}. Extract vectors for"
    with pytest.raises(ValueError, match=message):
        vectors.check_model(**{**own, **model})


def test_a_model_without_those_layers_is_refused(vectors: EmotionVectors) -> None:
    unknown = replace(vectors, provenance={})
    unknown.check_model(d_model=WIDTH, num_layers=10)
    with pytest.raises(ValueError, match="number of layers"):
        unknown.check_model(d_model=WIDTH, num_layers=9)


def test_directions_found_elsewhere_become_unit_vectors() -> None:
    raw = np.random.default_rng(0).normal(size=(3, 4, WIDTH)) * 7
    found = EmotionVectors.from_directions(
        torch.from_numpy(raw).float(), emotions=EMOTIONS, layers=LAYERS, reader="mine"
    )
    norm = np.linalg.norm(raw, axis=-1)
    np.testing.assert_allclose(found.raw_norm, norm, rtol=1e-5)
    np.testing.assert_allclose(found.directions[0], raw / norm[..., None], atol=1e-6)
    assert (found.readers, found.layers, found.emotions) == (
        ("mine",),
        LAYERS,
        EMOTIONS,
    )
    x = torch.randn(6, WIDTH)
    plain = x.numpy() @ (raw / norm[..., None])[1].T
    np.testing.assert_allclose(found.project(x, layer=5), plain, atol=1e-5)
    np.testing.assert_allclose(found.scores(x, layer=5), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d * 0, "must be non-zero and finite"),
        (lambda d: d * torch.nan, "must be non-zero and finite"),
        (lambda d: d * torch.inf, "must be finite"),
        (lambda d: d[:, :3], r"must be \(readers, layers, emotions, d_model\)"),
        (lambda d: d[:2], r"= \(1, 3, 4, 'd_model'\), got \(1, 2, 4, 16\)"),
    ],
)
def test_directions_that_cannot_be_are_refused(change, message: str) -> None:
    directions = torch.randn(3, 4, WIDTH)
    settings = {"emotions": EMOTIONS, "layers": LAYERS}
    EmotionVectors.from_directions(directions, **settings)  # control
    with pytest.raises(ValueError, match=message):
        EmotionVectors.from_directions(change(directions), **settings)


def test_an_emotion_named_twice_is_refused(vectors: EmotionVectors) -> None:
    with pytest.raises(ValueError, match="must be distinct"):
        replace(vectors, emotions=("calm", "calm", "at ease", "proud"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reader", [None, *READERS])
def test_readings_equal_numpys(
    vectors: EmotionVectors, reader: str | None, dtype: torch.dtype
) -> None:
    x = (torch.randn(2, 7, WIDTH) * 3).to(dtype)
    which = 0 if reader is None else READERS.index(reader)
    plain = x.double().numpy()
    for row, layer in enumerate(LAYERS):
        directions = vectors.directions[which, row].double().numpy()
        projection = (plain - vectors.centre[row].double().numpy()) @ directions.T
        found = vectors.project(x, layer=layer, reader=reader)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, projection, atol=1e-4)
        cosine = projection / np.linalg.norm(plain, axis=-1, keepdims=True)
        found = vectors.cosine(x, layer=layer, reader=reader)
        np.testing.assert_allclose(found, cosine, atol=1e-5)
        scale, offset = vectors.scale[which, row], vectors.offset[which, row]
        scores = projection * scale.numpy() + offset.numpy()
        found = vectors.scores(x, layer=layer, reader=reader)
        np.testing.assert_allclose(found, scores, atol=1e-4)
        for column, emotion in enumerate(EMOTIONS):
            one = vectors.direction(emotion, layer=layer, reader=reader)
            assert torch.equal(one, vectors.directions[which, row, column])
        # Control: without the centre the projections are others.
        assert not np.allclose(projection, plain @ directions.T, atol=1e-2)


def test_a_subset_reads_as_the_whole_does(vectors: EmotionVectors) -> None:
    names = ("proud", "calm", "at ease")
    part = vectors.subset(names)
    columns = [EMOTIONS.index(name) for name in names]
    x = torch.randn(5, WIDTH)
    for layer in LAYERS:
        for reader in READERS:
            at = {"layer": layer, "reader": reader}
            whole = vectors.scores(x, **at)
            torch.testing.assert_close(part.scores(x, **at), whole[:, columns])
            torch.testing.assert_close(
                part.project(x, **at), vectors.project(x, **at)[:, columns]
            )
    assert part.emotions == names
    assert torch.equal(part.raw_norm, vectors.raw_norm[:, columns])
    assert part.provenance == PROVENANCE
    assert not torch.equal(part.scores(x, layer=2), vectors.scores(x, layer=2)[:, :3])


def test_the_hash_is_of_all_that_readings_rest_on(vectors: EmotionVectors) -> None:
    assert len(vectors.hash) == 16
    assert replace(vectors, directions=vectors.directions.clone()).hash == vectors.hash
    hashes = {vectors.hash}
    for index in np.ndindex(len(READERS), len(LAYERS), len(EMOTIONS)):
        changed = vectors.directions.clone()
        changed[index][3] = torch.nextafter(changed[index][3], torch.tensor(9.0))
        hashes.add(replace(vectors, directions=changed).hash)
    others = [
        replace(vectors, centre=vectors.centre + 1),
        replace(vectors, emotions=(*EMOTIONS[1:], EMOTIONS[0])),
        replace(vectors, layers=(2, 5, 10)),
        replace(vectors, readers=READERS[::-1]),
        vectors.subset(EMOTIONS[:3]),
    ]
    hashes |= {other.hash for other in others}
    assert len(hashes) == 1 + 2 * 3 * 4 + len(others)
    # Provenance is not part of it: where the file came from moves no reading.
    assert replace(vectors, provenance={}).hash == vectors.hash


def test_unknown_names_are_refused_with_what_there_is(vectors: EmotionVectors) -> None:
    x = torch.zeros(1, WIDTH)
    assert vectors.emotion_indices(["proud", "calm"]) == (3, 0)  # control
    message = "one of the 4 in the vectors, got 'desparate'; did you mean desperate"
    for call in (
        lambda: vectors.emotion_indices(["calm", "desparate"]),
        lambda: vectors.subset(["desparate"]),
        lambda: vectors.direction("desparate", layer=2),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        vectors.emotion_indices(["zzz"])
    with pytest.raises(ValueError, match=r"`layer` must be one of \(2, 5, 9\).*got 3"):
        vectors.project(x, layer=3)
    with pytest.raises(ValueError, match=r"`reader` must be one of.*lda.*got 'mlp'"):
        vectors.project(x, layer=2, reader="mlp")


def test_vectors_are_frozen(vectors: EmotionVectors) -> None:
    with pytest.raises(FrozenInstanceError):
        vectors.layers = (1,)  # type: ignore[misc]
