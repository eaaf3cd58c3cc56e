"""Vectors in a folder of a model hub, with a card that says what they are."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from emoreg.vectors.accuracy import accuracy_lines
from emoreg.vectors.emotion_vectors import EmotionVectors

FILE, CARD = "vectors.safetensors", "README.md"


def save_pretrained(vectors: EmotionVectors, folder: str | Path) -> Path:
    """Write the vectors and their card into a folder, as a hub repository holds them.

    Raises:
        ValueError: If the folder can't be written.
    """
    path = vectors.save(Path(folder) / FILE)
    path.with_name(CARD).write_text(card(vectors), encoding="utf-8")
    return path.parent


def from_pretrained(name: str | Path, **options: Any) -> EmotionVectors:
    """Return the vectors of a folder, or of a hub repository of that name.

    Args:
        name: A folder written by `save_pretrained`, or a repository id.
        options: Handed on to `huggingface_hub.hf_hub_download`, such as `revision`.

    Raises:
        ValueError: If there is no such folder, and no such repository can be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return EmotionVectors.load(folder / FILE)
    try:
        return EmotionVectors.load(hf_hub_download(str(name), FILE, **options))
    except Exception as error:  # of the hub, of the network, of the name
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"`name` must be a folder with {FILE}, or a hub repository that can be "
            f"reached; found {str(name)!r}: {said}"
        ) from error


def push_to_hub(vectors: EmotionVectors, repository: str, **options: Any) -> str:
    """Upload vectors and card to a hub repository, made if need be; return its address.

    Args:
        vectors: What is uploaded.
        repository: `user/name`.
        options: Handed on to `huggingface_hub.HfApi.create_repo`, such as `private`.
    """
    api = HfApi()
    address = api.create_repo(repository, exist_ok=True, **options)
    for name, content in ((CARD, card(vectors).encode()), (FILE, _bytes(vectors))):
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repository)
    return str(address)


def card(vectors: EmotionVectors) -> str:
    """Return the model card: what the file's own metadata say, and how to load it."""
    made = vectors.provenance
    model = made.get("model") or "not recorded"
    lines = [
        "---",
        "library_name: emoreg",
        "tags: [emotion-vectors, interpretability]",
        *([f"base_model: {made['model']}"] if made.get("model") else []),
        "---",
        "",
        f"# Emotion vectors of {model}",
        "",
        "Directions of emotion concepts in the model's residual stream. They are "
        "representations; nothing here is a statement about feelings.",
        "",
        "```python",
        "from emoreg.vectors.hub import from_pretrained",
        "",
        'vectors = from_pretrained("THIS REPOSITORY")',
        "```",
        "",
        f"- Emotions: {len(vectors.emotions)}",
        f"- Layers (output of decoder block): {', '.join(map(str, vectors.layers))}",
        f"- Readers: {', '.join(vectors.readers)}",
        f"- Width: {vectors.d_model}",
        *(
            f"- {name}: {made[key]}"
            for name, key in (
                ("Revision of the model", "revision"),
                ("Stories fitted on", "stories"),
                ("Corpus", "corpus_hash"),
                ("Chat template", "template_hash"),
                ("Weights in", "dtype"),
                ("Settings", "settings"),
                ("Software", "software"),
            )
            if made.get(key)
        ),
        "",
        "## Held-out accuracy",
        "",
        *(f"- {line.strip()}" for line in accuracy_lines(vectors)),
        *([] if made.get("accuracy") else ["Not recorded."]),
        "",
        "## Validation in this model",
        "",
        *_validation(vectors),
        "",
    ]
    return "\n".join(lines)


def _validation(vectors: EmotionVectors) -> list[str]:
    found = vectors.validation
    if found is None:
        return ["None: run `emoreg validate` before a loss acts on these."]
    doubtful = [e for e, use in found["emotions"].items() if not use]
    return [
        *(f"- {name}: {verdict}" for name, verdict in found.get("checks", {}).items()),
        f"- Read at layers: {', '.join(map(str, found.get('layers', []))) or 'none'}",
        f"- Not to use: {', '.join(doubtful) or 'none found by these checks'}",
    ]


def _bytes(vectors: EmotionVectors) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return vectors.save(Path(folder) / FILE).read_bytes()
