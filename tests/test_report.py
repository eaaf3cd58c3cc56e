"""The report opens offline, treats names as text, and is written whole."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from comparison_tables import FAMILIES, synthetic
from test_pressure_report import TABLES as REACTIONS

from emoreg.comparison.compare import compare
from emoreg.comparison.curves import short, training_panels
from emoreg.comparison.page import share
from emoreg.comparison.palette import arm_styles
from emoreg.comparison.plots import _arm_key
from emoreg.comparison.pressure import pressure_rows
from emoreg.comparison.report import render, slope_rows
from emoreg.statistics.bootstrap import Interval

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
READ = ("desperate", "calm", "upset", "worried", "serene", "pleased", HOSTILE)
ARMS = ("control", HOSTILE, "placebo")
LOSSES = ("loss", "emotion_loss/band", "emotion_loss/contrast", "emotion_loss/task")
LOGGED = [
    f"emotion/{emotion}/L{layer}/{reader}/{kind}"
    for emotion in ("angry", "calm", "desperate")
    for layer in (9, 21)
    for reader in ("lda", "logistic")
    for kind in ("assistant", "fail", "pass", "slope")
]
LOG = [
    {"step": step, **dict.fromkeys([*LOGGED, *LOSSES], 2.0 / step)}
    for step in range(1, 6)
]


def measured(**changes):
    given = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10, **changes}
    return synthetic(prefix=HOSTILE, **given)


@pytest.fixture(scope="module")
def comparison():
    guards = {"kl": {"value": 0.01, "low": 0.0, "high": 0.02, "n": 5}}
    found = compare(
        measured(guards=guards),
        measured(scale=0.4, seed=1, guards=guards),
        arms={n: measured(seed=k) for k, n in enumerate(ARMS, start=2)},
        roles=FAMILIES,
        n_resamples=300,
        training={"after": LOG, "control": LOG},
        run={"Stages": {"train": "60 s"}, "Commands": [HOSTILE], "Machine": HOSTILE},
    )
    return found.with_pressure(REACTIONS)


@pytest.fixture(scope="module")
def saved(comparison, tmp_path_factory):
    return comparison.save(tmp_path_factory.mktemp("report") / "deep" / "report")


@pytest.fixture(scope="module")
def page(saved):
    return saved.read_text(encoding="utf-8")


def without_plotly(page):
    from plotly.offline import get_plotlyjs

    bundle = get_plotlyjs()
    assert page.count(bundle) == 1
    return page.replace(bundle, "")


def chart_block(page):
    found = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return found.group(1)


class Elements(HTMLParser):
    """Collects elements and the text outside scripts."""

    def __init__(self):
        super().__init__()
        self.found, self.text, self.inside = [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


@pytest.fixture(scope="module")
def parsed(page):
    parser = Elements()
    parser.feed(without_plotly(page))
    return parser


def test_the_folder_holds_page_figures_and_json(saved):
    names = {path.name for path in saved.parent.iterdir()}
    figures = ("distributions", "slopes", "changes", "training", "shifts")
    both = {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}
    assert names == {"index.html", "report.json", *both}
    for name in figures:
        assert (saved.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawn = ElementTree.fromstring((saved.parent / f"{name}.svg").read_bytes())
        tags = {element.tag.rpartition("}")[2] for element in drawn.iter()}
        assert {"path", "use"} <= tags
        # Text is drawn as outlines, pictures are inside: nothing is asked for.
        assert not tags & {"script", "foreignObject", "text", "a"}
        for element in drawn.iter():
            for key, value in element.attrib.items():
                if key.rpartition("}")[2] == "href":
                    assert value.startswith(("#", "data:image/png"))
    document = json.loads((saved.parent / "report.json").read_text(encoding="utf-8"))
    assert document["schema"] == "emoreg.report/1"
    assert document["training"]["after"] == LOG


def test_the_page_needs_no_network(page, parsed):
    assert not re.search(r"(?i)https?:|//[a-z0-9-]+\.[a-z]", without_plotly(page))
    sources = [
        value
        for _, attributes in parsed.found
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data")
    ]
    assert set(sources) <= {
        "data:,",  # the icon: none is asked for
        "distributions.png",
        "slopes.png",
        "changes.png",
        "training.png",
        "shifts.png",
    }
    policy = next(a for t, a in parsed.found if a.get("http-equiv"))
    assert "default-src 'none'" in policy["content"]


def test_hostile_names_are_inert(page, parsed):
    assert "onerror" in "".join(parsed.text)
    assert not any("onerror" in attributes for _, attributes in parsed.found)
    assert "<script>alert(2)" not in page
    assert [tag for tag, _ in parsed.found].count("script") == 4


def test_charts_escape_names_for_plotly(page):
    charts = json.loads(chart_block(page))
    assert "<img" not in json.dumps(charts)
    assert any("&lt;img" in json.dumps(chart) for chart in charts.values())


def test_colours_in_charts_are_tokens_of_the_style_sheet(page):
    block = chart_block(page)
    tokens = set(re.findall(r'"@([a-z0-9]+)(?:/[0-9.]+)?"', block))
    light, dark = page.split("prefers-color-scheme: dark", 2)[:2]
    assert len(tokens) > 8
    assert all(f"--{token}: #" in light and f"--{token}: #" in dark for token in tokens)


def test_text_and_tables_stand_without_scripts(parsed, comparison):
    text = " ".join("".join(parsed.text).replace("\u00a0", " ").split())
    # The index of the unit is set low, which splits its name.
    for sentence in comparison.judgement.findings:
        assert sentence.replace("σ_ref", "σref") in text
    for check in comparison.checks:
        assert check.requirement in text
    assert "audit composure" in text
    assert "withheld" in text
    assert "v" * 64 in text


def test_every_figure_has_words_for_those_who_cannot_see_it(parsed):
    plots = [a for _, a in parsed.found if a.get("class") == "plot"]
    assert len(plots) >= 6 + 6 + 2 + 2
    assert all(a["role"] == "img" and len(a["aria-label"]) > 10 for a in plots)


def test_the_page_is_one_plotly_bundle_and_little_else(page):
    assert len(without_plotly(page)) < 1_000_000


def test_an_arm_is_drawn_alike_in_keys_tables_and_charts(page, comparison):
    chart = json.loads(chart_block(page))["slopes-0"]
    drawn = [trace["line"]["color"].removeprefix("@") for trace in chart["data"]]
    assert len(set(drawn)) == len(comparison.arms)
    for start in ('<ul class="key" aria-label="Arms">', '<svg class="forest"'):
        part = page[page.index(start) :].split("</ul>" if "key" in start else "</svg>")
        items = part[0]
        assert re.findall(r'class="arm-(\w+)"', items) == drawn
        assert len(set(re.findall(r' d="([^"]+)"', items))) == len(drawn)
    assert all(f".arm-{colour} {{ color: var(--{colour})" in page for colour in drawn)


def test_a_picture_s_key_has_as_many_rows_as_it_needs():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    _arm_key(figure, arm_styles(["before", "after", *("n" * 26 + x for x in "abcdef")]))
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_ratios_are_written_as_in_the_verdict(page, comparison):
    near = Interval(estimate=0.499, low=-0.001, high=0.6, n=9)
    assert share(near) == ("49.9 %", "−0.1 to 60.0 %")
    shown = [row.ratio for row in slope_rows(comparison, comparison.summary)]
    told = [share(ratio) for ratio in shown if ratio is not None]
    assert told
    for value, ends in told:
        assert f'"num">{value}</span> <span class="range">{ends}</span>' in page


def test_curves_that_are_looked_for_come_first(page, comparison):
    keys = [panel.key for panel in training_panels(comparison)]
    assert sorted(keys) == sorted([*LOGGED, *LOSSES])
    assert keys[:3] == list(LOSSES[:3])
    assert keys[3:9] == [
        f"emotion/{emotion}/L21/logistic/{kind}"
        for emotion in ("desperate", "calm")
        for kind in ("slope", "fail", "pass")
    ]
    assert f"9 of {len(keys)} curves" in page
    assert comparison.plot_training(keys[-1]).data  # though not on the page


def test_long_names_are_cut_where_they_are_alike():
    ends = ("fail", "pass", "slope")
    cut = {short(f"emotion/desperate/L14/mean-difference/{e}", 32) for e in ends}
    assert {len(name) for name in cut} == {32}
    assert {name.rpartition("/")[2] for name in cut} == set(ends)
    assert short("calm", 32) == "calm"


def test_what_counts_as_an_outcome_is_told_in_text(page):
    rows = pressure_rows(REACTIONS)
    assert len(rows) > len({row.label for row in rows})
    for row in rows:
        assert page.count(f"<dt>{row.label}</dt><dd>{row.says}</dd>") == 1


def test_readings_without_a_headline_target_make_a_page(tmp_path):
    few = measured(n_prompts=8, emotions=("proud", "sad"))
    found = compare(few, few, roles=FAMILIES, n_resamples=100)
    page = found.save(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"index.html", "report.json", "changes.png", "changes.svg"}
    text = page.read_text(encoding="utf-8")
    assert "no distributions and no slopes by layer" in text
    assert 'id="h-slopes"' not in text
    with pytest.raises(ValueError, match="slopes are of, found nothing"):
        found.plot_slopes("proud")


def test_the_numbers_outlive_a_fault_in_drawing(comparison, tmp_path, monkeypatch):
    def broken(_):
        raise RuntimeError("no such font")

    monkeypatch.setattr("emoreg.comparison.plots.draw", broken)
    with pytest.raises(RuntimeError, match="no such font"):
        comparison.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["primary"]


def test_a_withheld_verdict_still_makes_a_page():
    few = measured(n_prompts=4, emotions=("joy", "calm"), positions=("decision",))
    found = compare(few, few, roles={}, n_resamples=100)
    page = render(found)
    assert "Verdict withheld: 4 prompts" in page


def test_constant_readings_still_make_a_page():
    flat = measured(n_prompts=8, emotions=("calm",))
    flat.values[:] = 0.25
    found = compare(flat, flat, roles={}, n_resamples=100)
    assert np.all(found.decision.arms["before"].slope.high == 0)
    assert "Verdict withheld" in render(found)


def test_a_folder_that_cannot_be_written_is_refused_first(
    comparison, tmp_path, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("drawn before the folder was checked")

    monkeypatch.setattr("emoreg.comparison.plots.draw", never)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(ValueError, match="`folder` must be a folder that can be"):
        comparison.save(taken / "report")
