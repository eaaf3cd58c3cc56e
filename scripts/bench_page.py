"""How soon a large report is seen, from disk in headless Chromium, and how large it is.

    python scripts/bench_page.py --repeats 5

171 emotions, 9 layers and 3 arms of made-up readings, those of `bench_compare.py`.
Times are the browser's own, in milliseconds from the start of the navigation: the first
paint with content, the end of loading, the last figure drawn, and the longest stretch
in which the page answers to nothing. Every repeat is a browser of its own, with
nothing cached but what the system keeps of files. Prints one line a repeat and the
medians.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import chromium
from bench_compare import table

from emoreg.comparison.compare import compare
from emoreg.comparison.page import plotly_source
from emoreg.comparison.report import render

MEBI = 2**20
TIMES = """(async () => {
  const stretches = [];
  const watch = (list) =>
    stretches.push(...list.getEntries().map((one) => one.duration));
  new PerformanceObserver(watch).observe({ type: "longtask", buffered: true });
  const plots = [...document.querySelectorAll(".plot")].filter((p) => p.offsetParent);
  while (!plots.every((one) => one.data)) await new Promise((go) => setTimeout(go, 10));
  const drawn = performance.now();
  await new Promise((go) => setTimeout(go, 500));
  return {
    "first paint": performance.getEntriesByName("first-contentful-paint")[0].startTime,
    "loaded": performance.getEntriesByType("navigation")[0].loadEventEnd,
    "drawn": drawn,
    "longest stretch": Math.max(0, ...stretches),
  };
})()"""


def page(prompts: int) -> tuple[str, int]:
    """Return a report of made-up readings, and the size of the library in it."""
    slopes = {"before": 0.8, "after": 0.3, "control": 0.6}
    tables = {
        arm: table(prompts, seed=seed, slope=slope)
        for seed, (arm, slope) in enumerate(slopes.items())
    }
    before, after = tables.pop("before"), tables.pop("after")
    found = compare(before, after, arms=tables, n_resamples=200)
    return render(found), len(plotly_source().encode())


def seen(program: str, file: Path) -> dict[str, float]:
    """Return the times of one browser that opens a file."""
    with chromium.running(program) as browser:
        tab = browser.page()
        tab.open(file.as_uri())
        return tab.evaluate(TIMES)


def main() -> None:
    parser = argparse.ArgumentParser(description="How soon a large report is seen.")
    parser.add_argument("--prompts", type=int, default=88)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    program = chromium.found()
    if program is None:
        raise SystemExit(f"needs one of {', '.join(chromium.NAMES)} on the path")
    text, library = page(options.prompts)
    size = len(text.encode())
    print(f"{(size - library) / MEBI:.2f} MiB, and plotly {library / MEBI:.2f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "index.html")
        file.write_text(text, encoding="utf-8")
        found = [seen(program, file) for _ in range(options.repeats)]
    for times in found:
        print(", ".join(f"{name} {value:.0f} ms" for name, value in times.items()))
    for name in found[0]:
        values = [times[name] for times in found]
        print(f"{name}: median {statistics.median(values):.0f} ms")


if __name__ == "__main__":
    main()
