"""The page of an audit: the verdict, every check, a picture where one failed."""

from typing import TYPE_CHECKING

from emoreg.comparison.checks_page import render_checks

if TYPE_CHECKING:
    from emoreg.comparison.audit.audit import Audit


def render_audit(
    audit: "Audit", warning: tuple[str, ...], reported: tuple[str, ...]
) -> str:
    """Return the page as text.

    Args:
        audit: What was found.
        warning: Beginnings of the names of checks whose miss only warns.
        reported: Likewise of those whose miss changes no verdict.
    """
    return render_checks(
        "audit/audit.html.j2",
        audit.checks,
        page=audit,
        tiles=_tiles(audit),
        warning=warning,
        reported=reported,
    )


def _tiles(audit: "Audit") -> list[dict[str, str]]:
    """Return the key numbers of the verdict box."""
    ran = [check for check in audit.checks if not check.not_run]
    passed = [check for check in ran if check.verdict == "passed"]
    return [
        {"label": "Verdict", "value": audit.verdict, "note": "by the rule below"},
        {
            "label": "Checks passed",
            "value": str(len(passed)),
            "note": f"of {len(ran)} that ran",
        },
        {
            "label": "Not run",
            "value": str(len(audit.checks) - len(ran)),
            "note": "each says why",
        },
    ]
