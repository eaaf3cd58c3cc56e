"""The colours of pages and figures, by what they stand for.

Okabe and Ito's, darker or lighter where their contrast asks for it. Text has 4.5 to 1
against its ground, lines and markers 3 to 1. Nothing is told by colour alone: versions
and arms also differ by marker and dash.
"""

LIGHT = {
    "bg": "#fbfaf7",
    "panel": "#ffffff",
    "ink": "#1b1d20",
    "muted": "#5c636c",
    "line": "#e6e4de",
    "zero": "#a9a8a2",
    "accent": "#1b1d20",
    "fail": "#d55e00",
    "pass": "#0072b2",
    "before": "#6f7681",
    "control": "#b0518a",
    "after": "#007a5e",
    "extra1": "#9a6a00",
    "extra2": "#56527e",
    "extra3": "#3f7f93",
    "lossband": "#faefd4",
    "auditband": "#e2f0fa",
    "cold": "#0072b2",
    "mid": "#f3f2ee",
    "warm": "#d55e00",
    "good": "#00694f",
    "bad": "#a83c00",
    "care": "#7a5300",
}
DARK = {
    "bg": "#131518",
    "panel": "#1a1d21",
    "ink": "#e9e8e3",
    "muted": "#a2a8b1",
    "line": "#2b2f35",
    "zero": "#5c626b",
    "accent": "#e9e8e3",
    "fail": "#f58b4c",
    "pass": "#5fb4ea",
    "before": "#a6adb8",
    "control": "#e29bc6",
    "after": "#3ecba6",
    "extra1": "#e6b24a",
    "extra2": "#a9a4dc",
    "extra3": "#8fd0e2",
    "lossband": "#30291a",
    "auditband": "#182a37",
    "cold": "#4aa3df",
    "mid": "#212429",
    "warm": "#f07f3c",
    "good": "#4ed3ae",
    "bad": "#ff9d66",
    "care": "#ecc06a",
}
TEXT = ("ink", "muted", "good", "bad", "care")
"""Those in which words are written."""
DRAWN = ("fail", "pass", "before", "control", "after", "extra1", "extra2", "extra3")
"""Those of lines and markers."""
