"""Pages in a real browser: hostile text is inert, nothing is asked for, all is shown.

These tests need a Chromium on the path (`scripts/chromium.py` says by which names), and
skip without one. Its command line is spoken to by its own protocol, so that they see
what the browser saw: elements, requests, errors, widths.
"""

import importlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_tables import FAMILIES, synthetic

from emoreg.comparison.audit.audit import Audit
from emoreg.comparison.charts import plain_text
from emoreg.comparison.compare import compare
from emoreg.comparison.page import page_environment, plotly_source
from emoreg.comparison.palette import DARK, LIGHT
from emoreg.comparison.runs import read_runs
from emoreg.comparison.serve import report_server
from emoreg.comparison.strip import Strip, strip
from emoreg.comparison.token_readings import TokenReadings
from emoreg.comparison.tokens_page import LEAST_CHANGE, scale_end, shade
from emoreg.comparison.validate import Validation
from emoreg.validation.check import Check, Curves, Figure, Matrix
from emoreg.validation.judgement import LayerStanding, Standing
from emoreg.vectors.corpus import Corpus

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>window.taken=1</script>",
    "</script><script>window.taken=2</script>",
    '"><img src=x onerror="window.taken=3">',
    "' onmouseover='window.taken=4' x='",
    "javascript:window.taken=5",
    "]]><svg onload=window.taken=6>",
    "\u2028window.taken=7\u2029",
    "<!--<script>window.taken=8",
    '<a href="javascript:window.taken=9">a</a>',
    "{{ 7 * 191 }}{% raw %}",
)
ALL = " ".join(HOSTILE)
READ = ("desperate", "calm", "upset", "worried", "serene", "pleased", ALL)
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
MEBI = 2**20


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPTS))  # as Python does for a program
    yield importlib.import_module("chromium")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Iterator[Any]:
    program = chromium.found()
    if program is None:
        pytest.skip(f"needs one of {', '.join(chromium.NAMES)} on the path")
    with chromium.running(program) as running:
        yield running


@pytest.fixture(scope="module")
def tab(browser: Any) -> Any:
    return browser.page()


def transcript(seed: int) -> dict[str, Any]:
    """Return a transcript that consists of hostile text, token by token."""
    pieces = ("Hello ", *HOSTILE)
    values = np.random.default_rng(seed).normal(size=(len(pieces), 2))
    return TokenReadings(
        id=ALL,
        style=ALL,
        reader="logistic",
        layer=21,
        emotions=("desperate", "calm"),
        pieces=pieces,
        spoken=(False, *(True for _ in HOSTILE)),
        decisions={1: 1.0},
        values=values,
    ).described()


def measured(**changes: Any) -> Any:
    given = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10, **changes}
    guards = {"kl": {"value": 0.01, "low": 0.0, "high": 0.02, "n": 5}}
    table = synthetic(prefix=ALL, guards=guards, **given)
    more: dict[str, Any] = {"model": ALL, "adapter": ALL, "command": ALL}
    more["transcripts"] = [transcript(changes.get("seed", 0))]
    return replace(table, meta={**table.meta, **more})


@pytest.fixture(scope="module")
def comparison() -> Any:
    log = [{"step": k, "loss": 1.0 / k, f"emotion_loss/{ALL}": 1.0} for k in (1, 2, 3)]
    return compare(
        measured(),
        measured(scale=0.4, seed=1),
        arms={"control": measured(seed=2), ALL: measured(seed=3)},
        roles=FAMILIES,
        n_resamples=200,
        training={"after": log, ALL: log},
        run={"Stages": {ALL: ALL}, "Commands": [ALL], ALL: ALL},
    )


def checks() -> tuple[Check, ...]:
    figure = Figure(name=ALL, value=0.9, low=0.8, high=1.0, reader=ALL, emotion=ALL)
    whole = replace(figure, emotion="", lower_is_better=True)
    check = Check(
        name=f"E1 {ALL}",
        question=ALL,
        method=ALL,
        headline=whole,
        threshold=0.4,
        figures=(whole, figure),
        notes=(ALL,),
        pictures=(
            Matrix(title=ALL, rows=(ALL,), columns=(ALL,), values=np.ones((1, 1))),
            Curves(
                title=ALL,
                x_title=ALL,
                y_title=ALL,
                x=(0.0, 1.0),
                series={ALL: (0.0, 1.0)},
            ),
        ),
    )
    open_ = Check(name=ALL, question=ALL, method=ALL, not_run=ALL)
    return check, open_


def audited() -> Audit:
    facts = {"Model": ALL, "After": ALL, "Vectors": ALL, ALL: ALL}
    return Audit(checks=checks(), facts=facts)


def validated() -> Validation:
    standing = Standing(emotion=ALL, holds=(ALL,), fails=(), required=ALL)
    layers = LayerStanding(layer=21, figures={ALL: 1.0}, score=1.0)
    return Validation(
        checks=checks(),
        emotions=(standing, replace(standing, holds=(), fails=(ALL,))),
        layers=(layers,),
        facts={"Model": ALL, "Vectors": ALL, "Readers": ALL, "Layers": ALL, ALL: ALL},
    )


def filmed() -> Strip:
    tables = {step: measured(scale=1.0 - step / 10, seed=step) for step in (0, 4, 8)}
    return strip(tables, n_resamples=200)


@pytest.fixture(scope="module")
def folder(comparison: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    comparison.save(root / "arm-0" / "report")
    hostile = ALL.replace("/", "\u2215")
    audited().save(root / hostile[:80])
    audited().save(root / "arm-1" / "audit")
    validated().save(root / "validation")
    filmed().save(root / "strip")
    read_runs(root).save(root)
    return root


PAGES = {
    "report": "arm-0/report/index.html",
    "audit": "arm-1/audit/index.html",
    "runs": "runs.html",
    "validation": "validation/index.html",
    "strip": "strip/index.html",
}


@pytest.fixture(params=PAGES)
def opened(request: pytest.FixtureRequest, tab: Any, folder: Path) -> Any:
    tab.look()
    tab.open((folder / PAGES[request.param]).as_uri())
    return tab


STIR = """
document.querySelectorAll("details").forEach((box) => { box.open = true; });
const plots = [...document.querySelectorAll(".plot")];
const drawn = () => plots.every((plot) => plot.data || !plot.offsetParent);
for (let tries = 0; tries < 150 && !drawn(); tries++) {
  await new Promise((done) => setTimeout(done, 100));
}
for (const plot of plots) {
  if (!plot.data) continue;
  plot.data.forEach((_, curve) => {
    try { Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: 0 }]); } catch {}
  });
}
for (const element of document.querySelectorAll("body *")) {
  for (const kind of ["mouseover", "mouseenter", "focus"]) {
    element.dispatchEvent(new Event(kind));
  }
}
for (const choice of document.querySelectorAll("select, input")) {
  choice.dispatchEvent(new Event("input", { bubbles: true }));
  choice.dispatchEvent(new Event("change", { bubbles: true }));
}
await new Promise((done) => setTimeout(done, 300));
"""
SETTLE = """
// Figures follow a new width of the window when the browser comes to it.
for (let tries = 0; tries < 50; tries++) {
  if (document.documentElement.scrollWidth <= innerWidth) break;
  await new Promise((done) => setTimeout(done, 100));
}
"""
INJECTED = """
[
  ...(window.taken === undefined ? [] : [`taken ${window.taken}`]),
  ...[...document.querySelectorAll("*")].flatMap((element) => [
    ...[...element.attributes]
      .filter((own) => own.name.startsWith("on"))
      .map((own) => `${element.tagName} ${own.name}`),
    ...["href", "xlink:href", "src"]
      .map((name) => element.getAttribute(name) ?? "")
      .filter((link) => /^\\s*javascript:/i.test(link)),
  ]),
  ...[...document.querySelectorAll("script")]
    .filter((element) => element.textContent.startsWith("window.taken"))
    .map(() => "script"),
  ...[...document.querySelectorAll("img")]
    .filter((element) => element.getAttribute("src") === "x")
    .map(() => "img"),
]
"""


def injected(tab: Any) -> list[str]:
    """Stir everything that can be stirred, then say what hostile text came to."""
    tab.evaluate(f"(async () => {{ {STIR} }})()")
    return tab.evaluate(INJECTED)


def test_hostile_text_is_inert_and_shown(opened: Any) -> None:
    title = opened.evaluate("document.title")
    assert injected(opened) == []
    assert opened.evaluate("document.title") == title
    said = opened.evaluate("document.body.innerText")
    assert "window.taken=1" in said
    assert "1337" not in said  # 7 times 191, had a template been read twice


CHANGE = """
const choose = (name, value) => {
  const given = document.getElementById(name);
  given.value = value;
  given.dispatchEvent(new Event("change"));
};
const shown = (version) =>
  [...document.querySelectorAll(`.transcript [data-version=${version}] > span`)];
const row = () => ({
  label: document.querySelector(".version:last-child .when").innerText,
  titles: shown("after").map((piece) => piece.title),
  before: shown("before").map((piece) => piece.title),
  shades: shown("after").map((piece) => piece.className.replace(" d", "").trim()),
  legends: [...document.querySelectorAll("#tokens .steps")]
    .filter((legend) => legend.offsetParent)
    .map((legend) => legend.innerText.split("\\n")[0]),
});
choose("token-emotion", "1");
const plain = row();
choose("token-line", "change");
const changed = row();
choose("token-line", "after");
return [plain, changed, row()];
"""


def test_the_second_line_of_a_transcript_shows_the_change_where_asked(
    tab: Any, folder: Path
) -> None:
    tab.open((folder / PAGES["report"]).as_uri())
    plain, changed, again = tab.evaluate(f"(() => {{ {CHANGE} }})()")
    first, second = (np.round(transcript(seed)["values"], 1) for seed in (0, 1))
    moved = (second - first)[1]
    read = [float(title.replace("\u2212", "-")) for title in changed["titles"]]
    assert read == pytest.approx(moved.tolist(), abs=0.051)
    assert [plain["label"], changed["label"]] == ["after", "change"]
    assert changed["before"] == plain["before"]
    assert again == plain != changed
    end = scale_end([np.asarray(second - first).T], least=LEAST_CHANGE)
    assert changed["shades"] == [shade(round(value, 1), end) for value in moved]
    assert len(plain["legends"]) == 1
    assert len(changed["legends"]) == 2
    assert f"{end:g} or less" in changed["legends"][1]


def test_without_escaping_hostile_text_is_seen_to_act(
    tab: Any, comparison: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare() -> Any:
        environment = page_environment()
        environment.autoescape = False
        return environment

    monkeypatch.setattr("emoreg.comparison.report.page_environment", bare)
    page = comparison.save(tmp_path / "bare")
    tab.open(page.as_uri())
    found = injected(tab)
    assert any(part.startswith("taken") for part in found)
    assert "IMG onerror" in found


def test_text_in_a_figure_is_inert_by_its_own_escaping(
    tab: Any, tmp_path: Path
) -> None:
    """Plotly reads some markup in texts; without escaping, a link becomes one."""

    def page(text: str) -> str:
        file = tmp_path / "figure.html"
        trace = {"x": [1], "y": [1], "type": "scatter"}
        layout = {"title": {"text": text}}
        document = page_environment().from_string(
            "<div id=plot></div><script>{{ source | safe }}</script><script>"
            "Plotly.newPlot('plot', [{{ trace | tojson }}], {{ layout | tojson }})"
            "</script>"
        )
        parts = {"source": plotly_source(), "trace": trace, "layout": layout}
        file.write_text(document.render(**parts), encoding="utf-8")
        tab.open(file.as_uri())
        return tab.evaluate("document.querySelectorAll('#plot svg a').length")

    link = '<a href="https://leak.example/">a</a>'
    assert page(link) == 1
    assert page(plain_text(link)) == 0


def foreign(tab: Any) -> list[str]:
    """Return what was asked for beyond the page's own folder."""
    own = ("file:", "data:", "blob:")
    return [address for address in tab.requests() if not address.startswith(own)]


def test_no_request_leaves_the_machine(opened: Any) -> None:
    injected(opened)
    assert opened.requests()
    assert foreign(opened) == []


def test_a_request_would_be_seen(tab: Any, tmp_path: Path) -> None:
    file = tmp_path / "asks.html"
    file.write_text("<!doctype html><img src=http://leak.example/a.png>")
    tab.open(file.as_uri())
    assert foreign(tab) == ["http://leak.example/a.png"]


def test_there_is_no_error(opened: Any) -> None:
    injected(opened)
    assert opened.errors() == []


@pytest.mark.parametrize(
    "script", ["console.error('oh')", "undefined.at", "fetch('file:///none')"]
)
def test_an_error_would_be_seen(tab: Any, tmp_path: Path, script: str) -> None:
    file = tmp_path / "errs.html"
    file.write_text(f"<!doctype html><script>{script}</script>")
    tab.open(file.as_uri())
    assert tab.errors() != []


def test_texts_tables_and_pictures_stand_without_scripts(
    browser: Any, folder: Path, comparison: Any
) -> None:
    tab = browser.page(scripts=False)
    tab.open((folder / PAGES["report"]).as_uri())
    said = " ".join(tab.evaluate("document.body.innerText").split())
    for sentence in comparison.judgement.findings:
        assert sentence.replace("σ_ref", "σref").split(" (")[0][:40] in said
    assert tab.evaluate("document.querySelectorAll('tbody tr').length") > 40
    shown = "getComputedStyle(document.querySelector('.plot')).display"
    assert tab.evaluate(shown) == "none"
    pictures = "[...document.images].map((image) => image.naturalWidth)"
    widths = tab.evaluate(pictures)
    assert len(widths) >= 5
    assert min(widths) > 500


OVERFLOWING = """
[...document.querySelectorAll("body *")]
  .filter((element) => !element.closest(".scroll") && !element.closest("svg"))
  .filter((element) => element.getClientRects().length)
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
  .map((element) => `${element.tagName}.${element.className}`)
"""


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_window(opened: Any, width: int) -> None:
    opened.look(width=width)
    opened.evaluate(f"(async () => {{ {STIR} {SETTLE} }})()")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate(OVERFLOWING) == []
    # The check can fail: a box that is too wide is found.
    wide = "<div class=probe style='width:3000px'>x</div>"
    opened.evaluate(f'document.querySelector("main").innerHTML += `{wide}`')
    assert "DIV.probe" in opened.evaluate(OVERFLOWING)


def test_colours_follow_the_scheme_and_paper_is_light(tab: Any, folder: Path) -> None:
    tab.look()
    tab.open((folder / PAGES["report"]).as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('#slopes-0').data?.[0].line.color"

    def rgb(colour: str) -> str:
        return (
            f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"
        )

    for dark, palette in ((False, LIGHT), (True, DARK)):
        tab.look(dark=dark)
        assert tab.evaluate(ground) == rgb(palette["bg"])
        drawn_in = palette["before"]
        tab.browser.wait(lambda own=drawn_in: tab.evaluate(line) == own)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(line) == LIGHT["before"]
    fits = """[...document.querySelectorAll(".plot")].filter((plot) => plot.data)
      .every((plot) => plot.querySelector("svg").clientWidth <= plot.clientWidth)"""
    assert tab.evaluate(fits)
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    tab.browser.wait(lambda: tab.evaluate(line) == DARK["before"])


def test_headings_go_down_in_steps_and_figures_have_names(opened: Any) -> None:
    levels = opened.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    nameless = """[...document.querySelectorAll(".plot, .scroll, section, img")]
      .filter((part) => !(part.getAttribute("aria-label") || part.alt ||
        document.getElementById(part.getAttribute("aria-labelledby"))))
      .map((part) => part.className || part.tagName)"""
    assert opened.evaluate(nameless) == []
    # Focus goes in the order of the page: no part has a place of its own in it.
    assert opened.evaluate("document.querySelectorAll('main').length") == 1
    own_place = (
        "document.querySelectorAll('main [tabindex]:not([tabindex=\"0\"])').length"
    )
    assert opened.evaluate(own_place) == 0


def test_wide_tables_scroll_by_keyboard(tab: Any, folder: Path) -> None:
    tab.look(width=420)
    tab.open((folder / PAGES["runs"]).as_uri())
    box = "document.querySelector('.scroll')"
    assert tab.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
    tab.evaluate(f"{box}.focus()")
    for kind in ("rawKeyDown", "keyUp"):
        key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
        tab.call("Input.dispatchKeyEvent", type=kind, **key)
    tab.browser.wait(lambda: tab.evaluate(f"{box}.scrollLeft") > 0)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    server = report_server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_served_pages_work_and_ask_their_own_server_alone(
    tab: Any, address: str
) -> None:
    tab.look()
    tab.open(address)
    links = tab.evaluate("[...document.links].map((link) => link.href)")
    assert links
    assert all(link.startswith(address) for link in links)
    assert injected(tab) == []
    for page in (address, address + PAGES["report"], address + PAGES["audit"]):
        tab.open(page)
        own = (address, "data:", "blob:")
        assert all(request.startswith(own) for request in tab.requests())
        assert tab.errors() == []
    drawn = "document.querySelectorAll('.plot svg').length"
    tab.browser.wait(lambda: tab.evaluate(drawn) > 0)


def test_a_large_page_is_small_enough() -> None:
    """171 emotions, 8 layers, 3 arms: at most 5 MB, and the library 5 more."""
    emotions = tuple(Corpus.packaged().emotions())
    given = {"emotions": emotions, "layers": (9, 14, 16, 17, 18, 21, 24, 27)}
    tables = [synthetic(seed=seed, n_prompts=88, **given) for seed in range(3)]
    found = compare(*tables[:2], arms={"control": tables[2]}, n_resamples=100)
    from emoreg.comparison.report import render

    page, library = render(found), plotly_source()
    assert len(emotions) == 171
    assert page.count(library) == 1
    assert len(page.replace(library, "").encode()) <= 5 * MEBI
    assert len(library.encode()) <= 5 * MEBI
