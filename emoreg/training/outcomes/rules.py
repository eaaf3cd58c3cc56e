"""Rules that read success or failure out of the text of one turn.

A rule looks for one form in which tools report an outcome and returns whether it
found failure, found success, or found nothing. It must be right rather than eager: what
people say about earlier runs, wishes and conditions is no outcome, so statements with
words of that kind are left out before most rules look.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

Rule = Callable[[str], bool | None]
"""Takes a text; returns True for failure, False for success, None for nothing found."""

POSITIVE: Final = frozenset(
    "accepted agrees approved cleared conforms correct equal feasible green healthy "
    "identical match matched matches merged met ok pass passed passes passing right "
    "same satisfied succeeded success successful sufficient valid verified".split()
)
NEGATIVE: Final = frozenset(
    "aborted blocked broken crashed declined denied deviates different differs error "
    "errored errors exceeded fail failed failing fails failure failures inconsistent "
    "incorrect infeasible insufficient invalid killed mismatch mismatched missed red "
    "refused rejected timeout unequal unhealthy unmet violated wrong".split()
)
# Not verdicts by themselves, but a `yes` or `no` behind them is one.
ASKED: Final = POSITIVE | frozenset("acceptance complete ready usable works".split())
FINAL_LABELS: Final = frozenset(
    "conclusion decision outcome overall result state status verdict".split()
)
# `below threshold` is missing on purpose: of an error it is good, of a score bad.
_BOUND: Final = (
    r"(?:the )?(?:limits?|budget|tolerance|bounds|range|spec|threshold|requirements?)"
)
_WITHIN: Final = re.compile(
    rf"(?:within|inside|meets) {_BOUND}|(?:all )?\w+ (?:met|satisfied|fulfilled)"
)
_BEYOND: Final = re.compile(
    rf"(?:out of|outside|over|beyond|exceeds) {_BOUND}|below (?:requirements?|minimum)"
    r"|(?:\w+ )?not (?:met|satisfied|fulfilled|reached|kept)"
)

_DIGITS: Final = 9
"""Of a count: no tool counts further, and thousands of them are no number to Python."""

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# A statement is a line or a sentence of it. Semicolons part the counts of some tools.
_BREAK: Final = re.compile(r"\n|(?<=[.;!?])\s+")
_HEDGE: Final = re.compile(
    r"\b(?:before|earlier|previous(?:ly)?|used to|yesterday|ago|was|were|had|"
    r"last (?:time|night|week|month|year|run)|"
    r"fixed|fixes|resolved|if|unless|until|should|would|could|might|may|can|want|"
    r"wanted|expect(?:s|ed)?|instead|no longer|example|whether|once|never|how|please)\b"
    r"|\?$"
    r"|^\W*(?:add|change|create|ensure|explain|fix|handle|implement|rename|set|write)"
    r"(?::|\s+(?:a|all|an|it|my|that|the|this|your|[A-Z_]{3,})\b)",
    re.IGNORECASE,
)

# Named codes, and the short form of logs (`job build exit 1`), which must not be a line
# of a shell script or the exit of a road.
_EXIT: Final = re.compile(
    r"\b(?:exit(?:ed|s)?[ _-]?(?:status|code)|(?:exited|exits)|return[ _]?code|rc)"
    r"(?:\s+(?:with|non-?zero|status|code|value|of|is))*\s*[:=>\"]{0,2}\s*(-?\d+)\b"
    r"(?![./%:,]\d)(?!\s+(?!in\b|after\b|at\b)[a-z])"
    r"|(?<=[\w\])] )(?<!\bthen )(?<!\belse )(?<!\bdo )(?<!\btake )(?<!\bthe )(?<!\bat )"
    r"exit (\d{1,3})$"
    r"|, exit (\d{1,3})$|^[\[(]exit (\d{1,3})[\])]$",
    re.IGNORECASE,
)
_MAKE: Final = re.compile(
    r"^g?make(?:\[\d+\])?: \*\*\* .*\bError \d+\s*$", re.MULTILINE
)

_KINDS: Final = r"(?:tests?|specs?|examples?|checks?|cases?|suites?|steps?|assertions?)"
_COUNT_FAILED: Final = re.compile(
    rf"(?<![\w.,/-])(\d+)\s+(?:{_KINDS}\s+)?(?:failed|failing|failures?)\b"
    r"(?!\s+(?!and\b|in\b|of\b|out\b)[a-z])|\bfailed (\d+) (?:of|out of) (?:the )?\d"
    r"|\b(?:failures|failed|fail|errors)\s*[:=]\s*(\d+)\b"
    r"|^#\s*fail\s+(\d+)\s*$",
    re.IGNORECASE,
)
_COUNT_PASSED: Final = re.compile(
    rf"(?<![\w.,/-])(\d+)\s+(?:{_KINDS}\s+)?(?:passed|passing)\b"
    r"|\b(?:passed|pass)\s*[:=]\s*(\d+)\b"
    rf"|^#\s*pass\s+(\d+)\s*$|\b(\d+)\s+{_KINDS},",
    re.IGNORECASE,
)
_COUNT_ERRORS: Final = re.compile(
    r"(?<![\w.,/-])(\d+|no)\s+(?:errors?|issues|problems)\b", re.IGNORECASE
)
# Where a count of errors is a summary and not a remark.
_ERRORS_SUMMARY: Final = re.compile(
    r"^\W*(?:found|result|success|summary|total)\b|\bpassed\b|\bwarnings?\b"
    r"|\bin [\d.]+ ?s\b\W*$",
    re.IGNORECASE,
)
_PART: Final = re.compile(
    rf"(?<![\w.,/-])(\d+)\s*(?:/|of|out of)\s*(\d+)\s+(?:{_KINDS}\s+)?"
    r"(?:passed|pass|passing|ok|succeeded)\b",
    re.IGNORECASE,
)
_ONLY_COUNTS: Final = re.compile(
    rf"^\W*(?:(?:\[\s*\d+%\]|{_KINDS}\b|all|ok)\W*)?\d+\s+(?:{_KINDS}\s+)?(?:passed|passing)\b"
    r"(?:\s*,\s*\d+\s+\w+)*(?:\s+in\b.*|\s*\([^)]*\))?\W*$",
    re.IGNORECASE,
)
_UNITTEST: Final = re.compile(
    r"^Ran \d+ tests? in [\d.]+s\s+(OK|FAILED)\b", re.MULTILINE
)
_PHPUNIT: Final = re.compile(r"^OK \(\d+ tests?, \d+ assertions?\)", re.MULTILINE)

_TAP: Final = re.compile(
    r"^[ \t]*(not ok|ok)(?: \d+)? - (?!.*# ?(?:todo|skip))",
    re.MULTILINE | re.IGNORECASE,
)
_TAP_PLAN: Final = re.compile(r"^1\.\.\d+\s*$", re.MULTILINE)
_TAP_BARE: Final = re.compile(
    r"^(not ok|ok) \d+ (?!.*# ?(?:todo|skip))", re.MULTILINE | re.IGNORECASE
)
_GO_FAIL: Final = re.compile(r"^(?:[ \t]*--- FAIL: |FAIL\b(?:\t|$))", re.MULTILINE)
_GO_PASS: Final = re.compile(
    r"^(?:ok\s+\S+\s+(?:\(cached\)|[\d.]+s)|PASS$)", re.MULTILINE
)

_STAMP: Final = r"(?:\[?[\d:T.\-/ ]+Z?\]?\s+)?"
_WORD_END: Final = re.compile(
    rf"^{_STAMP}(?:[\w./:\[\],()+-]+\s+){{0,5}}(?!(?<!\s)OK)"
    r"(PASS|PASSED|OK|SUCCESS|SUCCEEDED|FAIL|FAILED|FAILURE|ERROR|BROKEN)\W*$"
)
_WORD_START: Final = re.compile(r"^(PASSED|PASS|FAILED|FAIL)\b(?::\s|\s+[\w./]*[./]\S)")
# A bare `OK` is missing on purpose: people say it to go on.
_BARE: Final = re.compile(
    r"(?:accepted|correct|failed|incorrect|passed|rejected|success)[.!]?$",
    re.IGNORECASE,
)
_LABELLED: Final = re.compile(r"^(.{0,80}?)(?:\s*:\s+|(?<=\w)=(?=\w))([^:=]{1,60})$")
_SUBJECT: Final = re.compile(
    r"\b(?:all|builds?|compilation|deployment|installation|jobs?|lint(?:ing)?|pipeline|"
    rf"runs?|stage|suite|task|upload|workflow|{_KINDS})\b(?:\s+[\w.:-]+)?\s+"
    r"(?:still\s+|now\s+|has\s+|have\s+|is\s+)*"
    r"(fail(?:ed|ing|s)?|pass(?:ed|ing|es)?|succeeded|successful)\b(?!\s+(?:to|the|by|a|as)\b)",
    re.IGNORECASE,
)
_NEGATION: Final = re.compile(
    r"\b(?:not|no|none|without|nothing)\b|n't\b", re.IGNORECASE
)
_DENIED: Final = re.compile(
    r"\b(?:tests?|checks?|build|job|suite|it|this|that)\s+(?:still\s+)?"
    r"(?:do(?:es)?|did|is|are)(?:n't|\s+not)\s+(?:yet\s+)?"
    r"(?:pass|passing|succeed|compile|work|working)\b",
    re.IGNORECASE,
)
_JUDGED: Final = re.compile(
    r"\b(?:solution|answer|output|result)s? (?:is|are) (?:now |still )?"
    r"(correct|incorrect|right|wrong)\b",
    re.IGNORECASE,
)
_SUCCESS_LINE: Final = re.compile(
    r"^\W*(?:all (?:\d+ )?(?:tests|checks) (?:have )?pass(?:ed)?|build successful|"
    r"build succeeded|compiled successfully|success: no issues found\b.*)\W*$",
    re.IGNORECASE,
)
_MARK: Final = re.compile(r"^[ \t]*([✓✔✅]|[✗✘✕✖❌])[ \t]*\S", re.MULTILINE)

_CRASH: Final = re.compile(
    r"^[ \t]*Traceback \(most recent call last\):"
    r"|^(?:E\s+|Uncaught )?(?:[a-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception)(?::\s|\s*$)"
    r"|^panic: |^thread '.*' panicked at|^Segmentation fault|\(core dumped\)\s*$"
    r"|^(?:\S+: )?fatal(?: error)?: |^error(?:\[E\d+\])?: |^npm ERR! |^##\[error\]"
    r"|^\S+:\d+(?::\d+)?: (?:fatal )?error: |\berror TS\d+: "
    r"|^(?:bash|sh|zsh|/bin/sh): .*(?:command not found|No such file or directory)"
    r"|^Killed\s*$|^(?:Error|ERROR): \S|^\[ERROR\] "
    r"|\b(?:killed|terminated) by signal \d"
    r"|^(?:Assertion|Build|Compil\w+|Execution|Tests?) (?:failed|error)\b[:.! ]"
    r"|^(?:Wrong answer|(?:Time|Memory) limit exceeded|Runtime error)\b"
    r"|^HTTP/[\d.]+ [45]\d\d\b|^curl: \(\d+\) |^<(?:\w+_)?error>|^[\w.-]+: error: "
    r"|^Error response from |^CMake Error\b|^\w+ aborted!",
    re.MULTILINE,
)
_SIGN: Final = re.compile(r"\b(?:FAILED|Traceback|AssertionError)\b")
_TIMEOUT: Final = re.compile(
    r"\b(?:timed[ -]out after \S+|(?:command|process|job|test|run|request|execution|"
    r"connection) timed[ -]out|deadline exceeded|"
    r"timeout of \S+ ?(?:ms|s|seconds)? exceeded)\b|^\W*timed[ -]out\W*$"
    r"|^(?-i:TIMEOUT)\b(?!\s*[=:]?\s*\d)",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """Return the text without terminal colors and with plain line ends."""
    return _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def statements(text: str) -> list[str]:
    """Return lines and sentences that state something and do not hedge."""
    parts = (part.strip() for part in _BREAK.split(text))
    return [part for part in parts if part and not _HEDGE.search(part)]


def any_failure(votes: Iterable[bool | None]) -> bool | None:
    """Return True if one vote says failure, else False if one says success."""
    seen = {vote for vote in votes if vote is not None}
    return True if True in seen else (False if seen else None)


def exit_status(text: str) -> bool | None:
    """Read exit codes: `exit status 1`, `returncode: 0`, `make: *** ... Error 2`."""
    if _MAKE.search(text):
        return True
    codes = [
        code
        for part in statements(text)
        if not part.startswith(("$ ", "> ", "+ "))
        for code in _numbers(_EXIT, part.rstrip(" ."))
    ]
    # A shell reports the status of its last command.
    return codes[-1] != 0 if codes else None


def _numbers(pattern: re.Pattern[str], part: str) -> list[int]:
    return [
        int(number[:_DIGITS])
        for match in pattern.finditer(part)
        for number in match.groups()
        if number is not None
    ]


def _counts(part: str) -> tuple[list[int], list[int]]:
    """Return the counts of failures and of passes stated in one statement."""
    failed = _numbers(_COUNT_FAILED, part)
    if _ERRORS_SUMMARY.search(part):
        failed += [
            0 if match.group(1).lower() == "no" else int(match.group(1)[:_DIGITS])
            for match in _COUNT_ERRORS.finditer(part)
        ]
    for passed, total in _PART.findall(part):
        failed.append(int(total[:_DIGITS]) - int(passed[:_DIGITS]))
    return failed, _numbers(_COUNT_PASSED, _PART.sub("", part))


def runner_counts(text: str) -> bool | None:
    """Read summaries of test runners: `1 failed, 4 passed`, `Failures: 0`, TAP, Go."""
    failed: list[int] = []
    passed: list[int] = []
    for part in statements(text):
        of_part = _counts(part)
        failed += of_part[0]
        # `4 passed` alone counts only where it is all the line says.
        if of_part[0] or _ONLY_COUNTS.match(part) or part.startswith("#"):
            passed += of_part[1]
    if any(failed):
        return True
    if failed or passed:
        return None if passed and not any(passed) else False
    unittest = _UNITTEST.search(text)
    if unittest:
        return unittest.group(1) == "FAILED"
    form = _TAP_BARE if _TAP_PLAN.search(text) else _TAP
    tap = [match.group(1).lower() == "not ok" for match in form.finditer(text)]
    go = True if _GO_FAIL.search(text) else (False if _GO_PASS.search(text) else None)
    return any_failure([*tap, go, False if _PHPUNIT.search(text) else None])


def verdict(phrase: str, *, asked: bool = False) -> bool | None:
    """Judge a short phrase such as `NOT OK`, `all passed` or `out of limits`.

    Args:
        phrase: What stands behind a label.
        asked: Whether the label is a question that `yes` and `no` answer.
    """
    phrase = re.sub(r"\s*\([^)]*\)?\W*$", "", phrase).strip(" .!,;*_`\"'=-").lower()
    errors = re.fullmatch(r"(\d+|no) (?:errors?|failures?|issues|problems)", phrase)
    if errors:
        return errors.group(1) not in ("0", "no")
    if _BEYOND.fullmatch(phrase):
        return True
    if _WITHIN.fullmatch(phrase) and not _NEGATION.search(phrase):
        return False
    words = re.sub(r"^(?:all|now|still|has|is|are)\s+", "", phrase).split()
    if asked and words in (["yes"], ["no"], ["true"], ["false"]):
        return words[0] in ("no", "false")
    if len(words) == 1:
        return (
            True if words[0] in NEGATIVE else (False if words[0] in POSITIVE else None)
        )
    if len(words) == 2 and words[0] == "not" and words[1] in ASKED:
        return True
    return None


def _labelled(part: str) -> tuple[bool, bool] | None:
    """Return (failed, label is one of final verdicts) of `label: verdict`."""
    match = _LABELLED.match(part.rstrip(" .!"))
    if not match:
        return None
    label = re.findall(r"[a-z]+", match.group(1).lower())
    asked = bool(label) and bool({*label[-2:]} & ASKED)
    failed = verdict(match.group(2), asked=asked)
    if failed is None or not label:
        return None
    return failed, bool(FINAL_LABELS & set(label[-2:]))


def verdict_words(text: str) -> bool | None:
    """Read verdicts: `result: FAIL`, `plan usable: yes`, `test_a PASSED`, `✗ case`."""
    final: list[bool] = []
    votes: list[bool | None] = []
    for part in statements(text):
        labelled = _labelled(part)
        if labelled is not None:
            (final if labelled[1] else votes).append(labelled[0])
            continue
        word = _WORD_END.match(part) or _WORD_START.match(part)
        if word:
            votes.append(word.group(1).lower() in NEGATIVE)
        elif _BARE.match(part):
            votes.append(part.lower().startswith(("fail", "in", "rej")))
        elif _SUCCESS_LINE.match(part):
            votes.append(False)
    votes += [match.group(1) in "✗✘✕✖❌" for match in _MARK.finditer(text)]
    return final[-1] if final else any_failure(votes)


def spoken(text: str) -> bool | None:
    """Read plain sentences about a run: `the build failed`, `all tests pass now`."""
    votes: list[bool | None] = []
    for part in statements(text):
        if _DENIED.search(part):
            votes.append(True)
            continue
        if _NEGATION.search(part):
            continue
        found, judged = _SUBJECT.search(part), _JUDGED.search(part)
        if found:
            votes.append(found.group(1).lower().startswith("fail"))
        if judged:
            votes.append(judged.group(1).lower() in NEGATIVE)
    return any_failure(votes)


def crash(text: str) -> bool | None:
    """Find tracebacks, compiler errors and errors at the start of a line."""
    return True if _CRASH.search(text) else None


def sign_of_failure(text: str) -> bool:
    """Return whether the text has a word that tools print at failures alone.

    No verdict by itself: it may be quoted. It only casts doubt on a passing exit code.
    """
    return _SIGN.search(text) is not None


def timeout(text: str) -> bool | None:
    """Find runs that were cut off for time."""
    found = any(_TIMEOUT.search(part) for part in statements(text))
    return True if found else None
