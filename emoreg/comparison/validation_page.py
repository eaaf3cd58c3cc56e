"""The page of a validation: verdicts, each check with its controls, its pictures."""

from typing import TYPE_CHECKING

from emoreg.comparison.checks_page import render_checks

if TYPE_CHECKING:
    from emoreg.comparison.validate import Validation


def render_validation(validation: "Validation") -> str:
    """Return the page as text."""
    return render_checks(
        "validation.html.j2",
        validation.checks,
        page=validation,
        tiles=_tiles(validation),
        validation=validation,
    )


def _tiles(validation: "Validation") -> list[dict[str, str]]:
    """Return the key numbers of the verdict box."""
    emotions, layers = validation.emotions, validation.recommended_layers
    passed = [c for c in validation.checks if c.verdict == "passed"]
    missed = [c for c in validation.checks if c.verdict == "missed"]
    return [
        {
            "label": "Emotions to use",
            "value": str(len(validation.usable)),
            "note": f"of {len(emotions)} in the file",
        },
        {
            "label": "Checks passed",
            "value": str(len(passed)),
            "note": f"{len(missed)} missed, the rest say nothing either way",
        },
        {
            "label": "Read at layers",
            "value": ", ".join(map(str, layers)) or "–",
            "note": "best over the checks that tell layers apart",
        },
    ]
