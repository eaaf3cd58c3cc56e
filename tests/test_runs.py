"""Many runs from their files alone: what is read, what is skipped, what is served."""

import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from comparison_tables import FAMILIES, synthetic

from emoreg.cli import main
from emoreg.comparison.audit.audit import Audit
from emoreg.comparison.compare import compare
from emoreg.comparison.runs import read_runs
from emoreg.comparison.runs_page import render_runs
from emoreg.comparison.serve import report_server
from emoreg.validation.check import Check, Figure

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
HOSTILE = "<script>document.title='taken'<:script>\"'&-3"
SCHEME = "javascript:alert(1)-0"


def check(name: str, value: float | None, *, threshold: float = 0.4) -> Check:
    """Return a check that holds up to a threshold; without a value it was not run."""
    figure = None
    if value is not None:
        ends = {"low": value - 0.1, "high": value + 0.1}
        how: dict[str, Any] = {"count": 9, "lower_is_better": True}
        figure = Figure(name="share", value=value, **ends, **how)
    return Check(
        name=name,
        question="Is it gone?",
        method="Twins.",
        headline=figure,
        threshold=threshold,
        not_run="" if figure else "no table of it",
    )


def audited(left: float, reroute: float | None, *cross: float | None) -> Audit:
    checks = (
        check("E1 distress, median reader", left),
        check("E7 reroute index", reroute),
        *(check("E11 cross-reading", found) for found in cross),
    )
    return Audit(checks=checks, facts={"Model": "toy", "After": "a", "Vectors": "v"})


@pytest.fixture(scope="module")
def report() -> Any:
    given: dict[str, Any] = {"emotions": READ, "layers": (9, 21), "n_prompts": 10}
    return compare(
        synthetic(**given),
        synthetic(scale=0.4, seed=1, **given),
        roles=FAMILIES,
        n_resamples=200,
    )


@pytest.fixture(scope="module")
def folder(report: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of audits, one of them with three seeds, a comparison, and bad files."""
    root = tmp_path_factory.mktemp("many") / "runs"
    for seed, (left, own) in enumerate(((0.2, ()), (0.9, (0.6,)), (0.3, (None,)))):
        audited(left, 0.9, *own).save(root / f"decouple-{seed}" / "audit")
    audited(0.95, None, None).save(root / "data-0" / "audit")
    report.save(root / "data-0" / "report")
    for name in (HOSTILE, SCHEME):
        audited(0.1, 0.1).save(root / name / "audit")
    whole = (root / "data-0" / "audit" / "audit.json").read_text()
    bad = {
        "cut": whole[: len(whole) // 2],
        "empty": "",
        "other": json.dumps({"schema": "lighthouse/9", "audits": {}}),
        "list": "[1, 2]",
        "lacking": json.dumps({"schema": "emoreg.audit/1", "verdict": "PASS"}),
        "odd": whole.replace('"missed"', '"splendid"'),
    }
    for name, text in bad.items():
        (root / name).mkdir()
        (root / name / "audit.json").write_text(text)
    (root / "data-0" / "adapter.safetensors").write_bytes(b"weights")
    (root.parent / "secret.json").write_text("{}")
    (root.parent / "beyond").mkdir()
    (root.parent / "beyond" / "index.html").write_text("secret")
    (root / "away").symlink_to(root.parent / "beyond")
    (root / "away.json").symlink_to(root.parent / "secret.json")
    return root


class Elements(HTMLParser):
    """Collects elements with their attributes, links and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def links(self) -> list[str]:
        return [a["href"] or "" for tag, a in self.found if tag == "a"]


def test_files_are_read_by_arm_and_seed(folder: Path, report: Any) -> None:
    found = read_runs(folder)
    audits = found.of("audit")
    assert {arm: [run.seed for run in own] for arm, own in audits.items()} == {
        "decouple": [0, 1, 2],
        "data": [0],
        HOSTILE.removesuffix("-3"): [3],
        SCHEME.removesuffix("-0"): [0],
    }
    of_data = audits["data"][0]
    assert of_data.verdict == "FAIL"
    statuses = {name: outcome.status for name, outcome in of_data.checks.items()}
    assert statuses == {
        "E1 distress, median reader": "missed",
        "E7 reroute index": "not run",
        "E11 cross-reading": "not run",
    }
    # E7 alone never fails an audit: its miss is a warning, and so it is here.
    assert audits["decouple"][0].checks["E7 reroute index"].status == "warning"
    amount = of_data.figures["share of distress left"]
    assert (amount.value, amount.low, amount.high) == pytest.approx((0.95, 0.85, 1.05))

    (compared,) = found.of("report")["data"]
    figures = report.summary
    index = figures.index(report.audit_reader, "audit", "audit distress")
    slope = figures.arms["after"].slope.at(*index)
    amount = compared.figures["audit distress: slope after, σ_ref"]
    assert amount.value == pytest.approx(slope.estimate, rel=1e-4)
    assert amount.low == pytest.approx(slope.low, rel=1e-4)
    assert {n: o.status for n, o in compared.checks.items()} == {
        c.name: c.status for c in report.checks
    }


def test_bad_files_are_named_and_skipped(folder: Path) -> None:
    found = read_runs(folder)
    words = {path.partition("/")[0]: why for path, why in found.skipped.items()}
    assert set(words) == {"cut", "empty", "other", "list", "lacking", "odd"}
    assert "not whole" in words["cut"]
    assert "not whole" in words["empty"]
    assert "another program's" in words["other"]
    assert "another program's" in words["list"]
    assert "not as its schema says" in words["lacking"]
    assert "not as its schema says" in words["odd"]
    page = render_runs(found, start=PurePosixPath())
    text = " ".join(Elements(page).texts)
    assert "of 13 files" in text
    for name in words:
        assert f"{name}/audit.json" in text


def test_what_holds_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there must be a report\.json or audit"):
        read_runs(tmp_path)
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        read_runs(tmp_path / "none")


def test_a_report_alone_is_a_run_too(tmp_path: Path) -> None:
    audited(0.1, 0.1).save(tmp_path / "terms-7")
    (run,) = read_runs(tmp_path / "terms-7").runs
    assert (run.arm, run.seed) == ("terms", 7)
    assert run.path == PurePosixPath("audit.json")


def test_the_matrix_says_outcomes_in_words_and_links_them(folder: Path) -> None:
    page = render_runs(read_runs(folder), start=PurePosixPath())
    parsed = Elements(page)
    text = " ".join(" ".join(parsed.texts).split())
    assert "1 missed, 2 passed" in text
    assert "1 warning, 1 not run, 1 not asked" in text  # one seed is not the arm
    assert "3 warning" in text
    assert "not run" in text
    says = [a.get("aria-label") or "" for tag, a in parsed.found if tag == "a"]
    assert "seed 1: missed 0.9 (0.8 to 1)" in says
    assert "decouple-1/audit/index.html#check-0" in parsed.links
    assert "data-0/report/index.html#h-checks" in parsed.links


def test_every_link_leads_to_a_page_and_its_check(folder: Path, tmp_path: Path) -> None:
    from urllib.parse import unquote, urlsplit

    page = read_runs(folder).save(tmp_path / "deep" / "out")
    links = Elements(page.read_text()).links
    assert len(links) > 20
    for link in links:
        parts = urlsplit(link)
        assert parts.scheme == "", link
        target = page.parent / unquote(parts.path)
        assert target.is_file(), link
        if parts.fragment:
            assert f'id="{parts.fragment}"' in target.read_text(), link


def test_hostile_names_of_folders_are_text(folder: Path) -> None:
    parsed = Elements(render_runs(read_runs(folder), start=PurePosixPath()))
    assert [tag for tag, _ in parsed.found].count("script") == 4
    assert any(HOSTILE.removesuffix("-3") in text for text in parsed.texts)
    assert not any(link.startswith("javascript:") for link in parsed.links)
    # The check can fail: unquoted, the same name is a scheme.
    bare = Elements(f'<a href="{SCHEME}/audit/index.html">')
    assert any(link.startswith("javascript:") for link in bare.links)


def test_names_that_are_no_text_are_shown_and_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9-1")
    try:
        audited(0.1, 0.1).save(tmp_path / "runs" / name)
    except OSError:
        pytest.skip("this file system has no such names")
    page = read_runs(tmp_path / "runs").save(tmp_path / "out")
    assert "caf%E9-1/index.html" in page.read_text()


def test_the_command_writes_the_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--runs", str(folder), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Not read: cut/audit.json, not whole" in said
    assert f"7 reports: {tmp_path / 'runs.html'}" in said
    both = ["compare", "a.parquet", "b.parquet", "--runs", str(folder)]
    assert main([*both, "--out", str(tmp_path)]) == 2
    assert "`--runs` must stand without tables" in capsys.readouterr().err


Ask = Callable[..., tuple[int, str, dict[str, str]]]


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Ask]:
    """Ask a running server for a path, as it is, without any client's tidying."""
    server = report_server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    port = server.server_address[1]

    def get(
        path: str, host: str = "127.0.0.1", *, named: bool = True
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", f"{host}:{port}" if named else host)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
        connection.close()
        return answer.status, body, dict(answer.getheaders())

    yield get
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_server_shows_the_runs_and_their_reports(ask: Ask, folder: Path) -> None:
    status, page, headers = ask("/")
    assert status == 200
    assert page == render_runs(read_runs(folder), start=PurePosixPath())
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for link in Elements(page).links:
        status, body, _ = ask("/" + link.partition("#")[0])
        assert (status, "<!doctype html>" in body) == (200, True)
    assert ask("/data-0/audit/")[0] == 200
    assert ask("/data-0/audit/audit.json")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.json",
        "/%2e%2e/secret.json",
        "/..%2fsecret.json",
        "/data-0/../../secret.json",
        "/data-0/%2e%2e/%2e%2e/secret.json",
        "//../secret.json",
        "/away.json",  # a link out of the folder
        "/away/",
        "/away/index.html",
        "/data-0/adapter.safetensors",  # inside, but no report
        "/data-0/",  # no list of what lies there
        "/data-0",
        "/etc/passwd",
        "/data-0/audit/audit.json%00.html",
    ],
)
def test_the_server_refuses_what_is_no_report_of_the_folder(
    ask: Ask, path: str
) -> None:
    status, body, _ = ask(path)
    assert status in (400, 404)
    assert "secret" not in body.replace(path, "")


def test_the_server_answers_to_its_own_name_alone(ask: Ask) -> None:
    assert ask("/", host="localhost")[0] == 200
    assert ask("/", host="localhost", named=False)[0] == 200  # as for port 80
    assert ask("/", host="evil.example")[0] == 403


def test_the_page_follows_the_files(tmp_path: Path) -> None:
    audited(0.1, 0.1).save(tmp_path / "a-0")
    server = report_server(tmp_path)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        port = server.server_address[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        assert "b-1" not in connection.getresponse().read().decode()
        audited(0.9, 0.1).save(tmp_path / "b-1")
        connection.request("GET", "/")
        assert "b-1/index.html" in connection.getresponse().read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_port_that_is_taken_is_refused(folder: Path) -> None:
    with report_server(folder) as server:
        port = server.server_address[1]
        with pytest.raises(ValueError, match="`port` must be one that is free"):
            report_server(folder, port=port)


def test_serving_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report serve", str(tmp_path)]) == 2
    assert main(["report", "serve", str(tmp_path)]) == 2
    assert "there must be a report.json" in capsys.readouterr().err
