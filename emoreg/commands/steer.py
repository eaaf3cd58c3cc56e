"""`emoreg steer`."""

import argparse

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
