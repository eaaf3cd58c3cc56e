"""`emoreg steer`."""

import argparse
from pathlib import Path
from typing import Any

from emoreg.commands.shared import load, model_option, say, vectors_option

SUMMARY = "Answers steered by an emotion vector, beside the model's own."
EXAMPLE = (
    "emoreg steer --model demo --vectors vectors.safetensors --emotion desperate "
    '--strength 0.05 --prompt "How is the work going?"'
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    vectors_option(command)
    command.add_argument("--emotion", required=True)
    command.add_argument(
        "--strength",
        type=float,
        nargs="+",
        required=True,
        help="In mean residual-stream norms; 0 is always shown.",
    )
    command.add_argument("--prompt", required=True)
    command.add_argument(
        "--layers", type=int, nargs="+", help="Two thirds of depth if not given."
    )
    command.add_argument(
        "--export", type=Path, help="Write a GGUF control vector for llama.cpp too."
    )
    command.add_argument("--max-new-tokens", type=int, default=80)
    command.add_argument("--seed", type=int, default=0, help="Of the sampled answers.")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.vectors.emotion_vectors import EmotionVectors
    from emoreg.vectors.steering import steer

    vectors = EmotionVectors.load(options.vectors)
    vectors.emotion_indices([options.emotion])  # before the model loads
    loaded = load(options)
    found = steer(
        loaded.model,
        loaded.tokenizer,
        vectors,
        emotion=options.emotion,
        strengths=options.strength,
        prompt=options.prompt,
        layers=options.layers,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    for text in found:
        say(f"--- {options.emotion} {text.strength:+g}, greedy\n{text.greedy}")
        say(f"--- {options.emotion} {text.strength:+g}, sampled\n{text.sampled}")
        if text.broken:
            say("    (the greedy text repeats itself: too strong for this model)")
    if options.export:
        say(_exported(options, loaded, vectors))


def _exported(options: argparse.Namespace, loaded: Any, vectors: Any) -> str:
    """Write the direction, one mean norm long, and return how to use it."""
    from emoreg.residual.layers import num_layers
    from emoreg.vectors.control_vector_file import write_control_vector
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.steering import additions, layer_near, mean_norms

    model, corpus = loaded.model, Corpus.packaged()
    layers = options.layers or [layer_near(vectors, num_layers(model))]
    norms = mean_norms(model, loaded.tokenizer, corpus, layers)
    moved = additions(vectors, options.emotion, 1.0, norms=norms)
    kind = str(getattr(model.config, "model_type", ""))
    path = write_control_vector(options.export, moved, model_type=kind)
    return f"{path}: in llama.cpp, --control-vector-scaled with the same strength"
