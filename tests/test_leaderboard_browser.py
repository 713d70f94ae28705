"""The leaderboard in a real browser, from a file: sorted and filtered by keyboard, looked into, compared."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from some_records import ITEMS, MEANS, NASTY, PAIR, data_folder, elsewhere, fill, record

from harness import methods, statistics
from harness.leaderboard import make
from harness.leaderboard.boards import gather
from harness.store import Store

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
PATIENCE = 40  #: seconds; the machine may be busy with something else


class Page:
    """One page in one browser."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver, self.url = driver, file.as_uri()

    def open(self, fragment: str = "", *, width: int = 1280, dark: bool = False) -> Page:
        """Load anew, for a width in CSS pixels and a preferred colour scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.driver.get("about:blank")
        self.driver.get(self.url + fragment)
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until every pack that is being opened is there."""
        self.wait(lambda: self.run("return document.querySelector('#content')?.textContent.length > 0"))
        self.wait(lambda: "Opening …" not in self.text())

    def wait(self, ready: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE
        while not (found := ready()):
            assert time.monotonic() < end, f"waited {PATIENCE} s in vain"
            time.sleep(0.05)
        return found

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self) -> str:
        return str(self.run("return document.body.textContent"))

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.all(selector, "e.textContent.trim()")]

    def all(self, selector: str, expression: str) -> list[Any]:
        """A JavaScript expression of every element ``e`` that fits."""
        script = f"return [...document.querySelectorAll(arguments[0])].map(e => {expression})"
        return list(self.run(script, selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focus(self, selector: str, key: str = Keys.TAB) -> Any:
        """Tab forward until the focus is on an element that fits."""
        for _ in range(250):
            self.press(key)
            if self.run("return document.activeElement.matches(arguments[0])", selector):
                return self.driver.switch_to.active_element
        raise AssertionError(f"the Tab key never comes to {selector}")

    def choose(self, selector: str, value: str) -> None:
        """What a reader does with a select, as one event."""
        change = (
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('change'))"
        )
        self.run(change, selector, value)
        self.settle()

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than the screen."""
        return int(
            self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium with its driver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield made
    made.quit()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a whole board, an incomplete method, a failed one, and a board of one seed."""
    methods.load()
    root = tmp_path_factory.mktemp("board")
    store, data = Store(root / "results"), data_folder(root / "data")
    fill(store, data)
    record(store, "js", 1, 99.0, data=data)
    record(store, "srkl", 1, 0, data=data, failed="<script>window.pwned = 'reason'</script>")
    for method, mean in (("sft", 20.0), ("uld", 25.0)):
        record(store, method, 1, mean, data=data, pair="small/smollm2-stories", names=("dolly",))
    log = store.root / "work" / "run.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(
        f"2026-01-02 03:04:05 [1/2] {PAIR} kl seed 1: FAILED: <script>window.pwned = 'log'</script>\n"
    )
    target = store.root / "leaderboard.html"
    target.write_text(make(store, target, root / "cache", data=data).html, encoding="utf-8")
    return store.root


@pytest.fixture
def page(driver: Any, results: Path) -> Iterator[Page]:
    """The made-up page; afterwards nothing may have been complained of, run or fetched."""
    yield from _watched(driver, results / "leaderboard.html")


@pytest.fixture(scope="session")
def real_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods.load()
    folder = tmp_path_factory.mktemp("real")
    made = make(Store(ROOT / "results"), folder / "leaderboard.html", folder / "cache")
    (folder / "leaderboard.html").write_text(made.html, encoding="utf-8")
    return folder / "leaderboard.html"


@pytest.fixture
def real(driver: Any, real_file: Path) -> Iterator[Page]:
    """The page of the committed records, watched in the same way."""
    yield from _watched(driver, real_file)


def _watched(driver: Any, file: Path) -> Iterator[Page]:
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # what came before is not ours
    page = Page(driver, file)
    yield page
    assert page.run("return window.pwned") is None
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    ours = [params for params in sent if params["documentURL"].startswith("file:")]  # not the browser's own
    asked = [params["request"]["url"] for params in ours]
    assert asked
    assert {urlsplit(url).scheme for url in asked} <= {"file", "data", "blob"}
    assert {unquote(urlsplit(url).path) for url in asked if url.startswith("file:")} <= {str(file)}


RANKING = "table.ranking tbody:not(.below) tr"


def _ranked(page: Page) -> list[str]:
    return page.all(RANKING, "e.dataset.method")


# one look


def test_leader_certainty_and_cost_are_said_first(page: Page) -> None:
    page.open()
    assert page.texts(".overview tbody tr th") == [PAIR, "small/smollm2-stories"]
    said = page.texts("p.verdict")[0]
    assert said.startswith("KL has the highest score, ")
    assert "It is the best with probability " in said and "It trains in 15 s a run." in said
    assert "1 other of 3 cannot be told apart from it: RKL." in said
    assert _ranked(page) == ["kl", "rkl", "sft", "dskd-v1/kl"]
    assert len(page.texts(f"{RANKING}:first-child td.groups .bar")) == 1


def test_incomplete_and_references_stand_apart(page: Page) -> None:
    page.open()
    assert page.texts("table.ranking tr.title") == ["References, not ranked", "Incomplete, not ranked"]
    assert "no training seed 2, 3" in page.texts(".reason")[0]
    incomplete = "table.ranking .below tr:has(.reason)"  # no rank, and no average over what is lacking
    assert page.texts(f"{incomplete} td.rank") == page.texts(f"{incomplete} td.score") == ["", ""]
    assert any(text.startswith("Not run: not yet: ") for text in page.texts(".not-run"))


def test_one_seed_is_not_ranked(page: Page) -> None:
    page.open("#board=small/smollm2-stories")
    assert "No ranks are given: one training seed shows nothing" in page.texts("p.verdict")[0]
    assert page.texts(f"{RANKING} td.rank") == ["1", "2"]


# sorting and filtering


def test_sorting_by_keyboard(page: Page) -> None:
    page.open()
    heads = page.texts("table.ranking thead th")
    for name, first in (
        ("Method", ["dskd-v1/kl", "kl", "rkl", "sft"]),
        ("Train s", ["dskd-v1/kl", "sft", "rkl", "kl"]),
    ):
        number = next(k for k, head in enumerate(heads, 1) if head.startswith(name))
        button = f"table.ranking thead th:nth-child({number}) button"
        page.run("document.querySelector('table.ranking').closest('.scroll').focus()")
        page.focus(button)
        page.press(Keys.ENTER)
        assert _ranked(page) == first
        assert (
            page.one(f"table.ranking thead th:nth-child({number})").get_attribute("aria-sort") == "ascending"
        )
        page.press(Keys.SPACE)
        assert _ranked(page) == first[::-1]
        assert (
            page.one(f"table.ranking thead th:nth-child({number})").get_attribute("aria-sort") == "descending"
        )
        assert page.run("return document.activeElement.matches(arguments[0])", button)  # the focus stays
    assert len(page.texts("table.ranking th[aria-sort]:not([aria-sort=none])")) == 1


def test_filters_narrow_the_boards(page: Page) -> None:
    page.open()
    page.choose("#filter-vocabulary", "different")
    assert page.texts(".overview tbody tr th") == ["small/smollm2-stories"]
    assert page.texts("#board-title") == ["small/smollm2-stories"]
    page.choose("#filter-vocabulary", "")
    page.choose("#filter-suite", "self-inst")
    assert page.texts(".overview tbody tr th") == [PAIR]  # the other board lacks the suite
    assert "suite=self-inst" in page.driver.current_url
    heads = [head.rstrip(" ") for head in page.texts("table.ranking thead th button")]
    assert heads[2] == "self-inst" and heads[4:6] == ["Average", "dolly"]
    page.choose("#filter-pair", "small/smollm2-stories")
    assert "No board passes the filters." in page.text()
    page.one("form.filters button").click()
    page.wait(lambda: len(page.texts(".overview tbody tr th")) == 2)


def test_filters_by_keyboard(page: Page) -> None:
    page.open()
    page.focus("#filter-vocabulary")
    page.press("d")
    page.wait(lambda: page.texts(".overview tbody tr th") == ["small/smollm2-stories"])
    assert page.run("return document.activeElement.id") == "filter-vocabulary"


# looking into a number


def test_from_a_cell_to_record_command_log_and_answers_by_keyboard(page: Page, results: Path) -> None:
    page.open()
    page.run("document.querySelector('table.ranking').closest('.scroll').focus()")
    link = page.focus("table.ranking tbody:not(.below) tr:first-child td a[href*='suite=self-inst']")
    assert "method=kl" in link.get_attribute("href")
    page.press(Keys.ENTER)
    page.wait(lambda: page.texts("#method-title"))
    page.settle()
    assert page.run("return document.activeElement.id") == "method-title"
    assert page.texts("#method-title") == [f"KL on {PAIR}"]
    store = Store(results)
    records = {r["spec"]["seed"]: r for r in store.all() if r["spec"]["method"] == "kl"}
    links = page.all("a[href*='/records/'], a[href^='records/']", "[e.textContent, e.href]")
    assert [text for text, _ in links] == [records[seed]["cell"] for seed in (1, 2, 3)]
    for _, href in links:
        assert Path(unquote(urlsplit(href).path)).is_file()
    assert page.texts(".command pre") == [records[1]["provenance"]["command"]]
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
    page.wait(lambda: len(page.texts("#answers .item pre")) > ITEMS)
    text = page.text()
    assert "step     5" in text and "FAILED: <script>window.pwned = 'log'</script>" in text
    assert '"checkpoint": "last: last step"' in text
    answers = page.texts("#answers .item:first-child table.answers pre")
    rows = [
        store.read_generations(r["scores"]["self-inst"]["seeds"]["10"]["generations"])
        for _, r in sorted(records.items())
    ]
    assert answers == [row[0]["text"].strip() for row in rows]
    source = page.one("#answers .item table.answers a").get_attribute("href")
    assert Path(unquote(urlsplit(source).path)).is_file()


def test_scripts_in_answers_prompts_and_logs_are_text(page: Page) -> None:
    page.open(f"#board={PAIR}&method=kl&suite=dolly")
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
    shown = page.wait(lambda: len(found := page.texts("#answers pre")) > 3 * ITEMS and "\n".join(found))
    for text in filter(None, NASTY):
        assert shown.count(text.strip()) >= 2, text  # in prompts and in answers
    assert page.texts("#content script, #content img, #content style") == []
    page.open(f"#board={PAIR}&method=srkl")
    assert "<script>window.pwned = 'reason'</script>" in page.texts("p.verdict")[0]


@pytest.fixture
def with_external(driver: Any, tmp_path: Path) -> Iterator[Page]:
    """A board, and records from elsewhere with all that is nasty in what a record may hold."""
    methods.load()
    store, data = Store(tmp_path / "results"), data_folder(tmp_path / "data")
    fill(store, data)
    source = "Uni <img src=x onerror=window.pwned=1></script><script>window.pwned=1</script>"
    elsewhere(store.root, tmp_path / "sent", source, "kl", 7, 90.0, data=data, versions=[[NASTY[0], 1]])
    elsewhere(store.root, tmp_path / "sent", "Y", "kl", 7, 90.0, data=data, pair=NASTY[1])
    target = store.root / "leaderboard.html"
    target.write_text(make(store, target, tmp_path / "cache", data=data).html, encoding="utf-8")
    yield from _watched(driver, target)


@pytest.mark.parametrize("width", [360, 1280])
def test_external_numbers_stand_apart_as_text(with_external: Page, width: int) -> None:
    page = with_external.open(width=width)
    assert _ranked(page) == ["kl", "rkl", "sft", "dskd-v1/kl"]
    assert "14 records and 2 external ones on 2 boards" in page.text()
    (row,) = page.texts(".external tbody tr")
    assert "Uni <img src=x onerror=window.pwned=1></script><script>" in row
    assert f"other {NASTY[0]}" in row or NASTY[0] not in page.text()
    assert "counted nowhere" in page.texts(".external p")[0]
    own = page.all("table.overview a, .overview a", "e.getAttribute('href')")
    page.open(next(link for link in own if "script" in link), width=width)
    assert "No method has all suites" in page.text()
    assert page.texts(".external tbody th") == ["KL"]
    page.run("document.querySelector('details.protocol').open = true")
    assert "no record of our own" in page.text()
    assert page.overflow() <= 0


def test_search_order_and_pages_of_answers(page: Page) -> None:
    page.open(f"#board={PAIR}&method=kl&suite=dolly")
    assert len(page.texts("#answers .item")) == ITEMS
    page.choose("#order", "1")
    scores = [float(text) for text in page.texts("#answers .item summary .number")]
    assert scores == sorted(scores)
    page.one("#search").send_keys("item 7 of")
    page.wait(lambda: len(page.texts("#answers .item")) == 1)
    assert page.texts("#answers [role=status]") == ["1 of 1 example"]


def test_links_lead_to_board_method_pair_and_example(page: Page) -> None:
    page.open(f"#suite=dolly&board={PAIR}&method=rkl&example=3")
    assert page.texts("#method-title") == [f"RKL on {PAIR}"]
    assert page.run("return document.querySelector('.pinned details').open")
    assert "Item 2 of dolly" in page.texts(".pinned pre")[0]
    page.one(".back a").click()
    page.wait(lambda: page.texts("#board-title") == [PAIR])
    page.driver.back()
    page.wait(lambda: page.texts("#method-title"))
    page.open("#board=nowhere&method=kl")
    assert page.texts("#board-title") == [PAIR]  # unknown: the first board
    page.open(f"#board={PAIR}&method=nothing")
    assert f"{PAIR} has no method nothing." in page.text()


# two methods


def test_comparing_two_methods(page: Page, results: Path) -> None:
    page.open()
    page.choose("#compare-a", "sft")
    page.choose("#compare-b", "rkl")
    page.focus("form.compare button")
    page.press(Keys.ENTER)
    page.wait(lambda: page.texts("#compare-title"))
    page.settle()
    assert page.texts("#compare-title") == [f"SFT against RKL on {PAIR}"]
    (board, *_) = gather(Store(results).all())
    samples = {entrant.method: entrant.sample for entrant in board.entrants}
    for suite in board.suites:
        mine, other = (samples[name].scores[suite].mean(axis=(0, 1)) for name in ("sft", "rkl"))
        wins = [
            int((mine > other + 1e-6).sum()),
            int((abs(mine - other) <= 1e-6).sum()),
            int((mine < other - 1e-6).sum()),
        ]
        row = page.wait(lambda s=suite: next((r for r in _rows(page) if r[0] == s and r[5]), None))
        assert [int(text) for text in row[5:8]] == wins and sum(wins) == ITEMS
        gain = statistics.difference(samples["sft"].only(suite), samples["rkl"].only(suite))
        assert row[3].startswith(f"\u2212{-gain.mean:.2f} [")
        assert row[4] == "yes"
    page.choose("#kind", "2")  # B wins
    values = page.texts("#answers .item summary .number")
    assert values and all(text.startswith("\u2212") for text in values)
    page.one("#answers .item summary").send_keys(Keys.ENTER)
    heads = page.wait(lambda: page.texts("#answers .item h4"))
    assert heads[-2].startswith("A, SFT, mean ") and heads[-1].startswith("B, RKL, mean ")


def _rows(page: Page) -> list[list[str]]:
    return page.all("#content table.data tbody tr", "[...e.children].map(c => c.textContent.trim())")


def test_a_reference_can_be_compared_with(page: Page) -> None:
    page.open(f"#board={PAIR}&method=kl&with=teacher")
    assert page.texts("#compare-title") == [f"KL against Teacher on {PAIR}"]
    assert page.texts("p.verdict")[0].startswith("A \u2212 B is \u2212")


# plots


def test_plots_name_axes_and_link_to_methods(page: Page) -> None:
    page.open()
    page.wait(lambda: page.texts(".figure .plot .point"))
    names = page.texts(".figure .plot text.name")
    assert names == [
        *("training time, seconds a run", "score, average of suites, points"),
        *("training step", "ce, as weighted in the loss"),
    ]
    assert len(page.texts(".point")) == len(MEANS) == len(page.texts(".figure .curve"))
    page.choose("#cost", "peak_rss_mb")
    page.wait(lambda: page.texts(".figure .plot text.name")[0] == "peak memory, MB")
    page.run("document.querySelector('#cost').focus()")
    point = page.focus("a.point")
    assert "points" not in point.get_attribute("aria-label") and "MB" in point.get_attribute("aria-label")
    assert page.run("return document.querySelectorAll('.lit').length") >= 2  # its row and its curve light up
    page.press(Keys.ENTER)
    page.wait(lambda: page.texts("#method-title"))


# themes and sizes


def _colours(page: Page) -> list[float]:
    """Relative luminance (WCAG 2.2) of paper and ink."""
    found = page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    return [_luminance([int(part) for part in text[4:-1].split(",")]) for text in found]


def _luminance(rgb: list[int]) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb)
    ]
    return float(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


def test_light_and_dark_follow_the_system_and_the_button(page: Page) -> None:
    paper, ink = _colours(page.open())
    assert paper > ink
    paper, ink = _colours(page.open(dark=True))
    assert paper < ink
    button = page.one("#theme")
    assert button.text == "Theme: auto"
    button.send_keys(Keys.ENTER)
    assert button.text == "Theme: light"
    paper, ink = _colours(page)
    assert paper > ink  # against the system's wish
    button.send_keys(Keys.ENTER)
    paper, ink = _colours(page.open())
    assert paper < ink  # it was kept
    page.one("#theme").send_keys(Keys.ENTER)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_enough_contrast(page: Page, dark: bool) -> None:
    page.open(dark=dark)
    names = (
        "ink",
        "quiet",
        "link",
        "good",
        "bad",
        "supervised",
        "logit",
        "cross-tokenizer",
        "dual-space",
        "other",
    )
    for name in names:
        pair = page.run(
            "const p = document.createElement('p'); document.body.append(p);"
            "const of = name => { p.style.color = `var(--${name})`; return getComputedStyle(p).color };"
            "const made = [of('tint'), of(arguments[0])]; p.remove(); return made",
            name,
        )
        low, high = sorted(_luminance([int(part) for part in text[4:-1].split(",")]) for text in pair)
        assert (high + 0.05) / (low + 0.05) >= (4.5 if name in names[:5] else 3), name


VIEWS = (
    "",
    f"#board={PAIR}&method=kl&suite=dolly&example=1",
    f"#board={PAIR}&method=kl&with=sft&suite=dolly&example=4",
)


@pytest.mark.parametrize("view", VIEWS, ids=["board", "method", "compare"])
def test_a_phone_needs_no_sideways_scrolling(page: Page, view: str) -> None:
    page.open(view, width=360)
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
    page.settle()
    assert page.overflow() == 0
    heights = page.all("button, select, input", "e.offsetHeight")
    assert all(height == 0 or height >= 24 for height in heights)  # WCAG 2.5.8; 0 is hidden


def test_everything_has_a_name_and_a_place_in_the_order(page: Page) -> None:
    for view in VIEWS:
        page.open(view)
        named = "e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.[0]?.textContent"
        names = page.all("a, button, select, input, svg[role=img], [role=region]", named)
        assert all(names)
        assert all(index <= 0 for index in page.all("[tabindex]", "e.tabIndex"))
        ids = page.all("[id]", "e.id")
        assert len(set(ids)) == len(ids)
        levels = page.all("h1, h2, h3, h4", "+e.tagName[1]")
        assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


# the committed records


@pytest.mark.parametrize("width", [360, 1280])
def test_every_board_of_the_committed_records_is_shown(real: Page, width: int) -> None:
    real.open(width=width)
    ids = real.run("return JSON.parse(document.getElementById('data').textContent).boards.map(b => b.id)")
    assert len(ids) >= 10
    for board in ids:
        real.run("location.hash = arguments[0]", f"#board={board}")
        real.wait(lambda name=board: real.texts("#board-title") == [name])
        real.settle()
        assert real.overflow() == 0
        assert not any("Cannot be shown" in text for text in real.texts("[role=alert]"))
    if width == 1280:
        assert max(real.all(".scroll", "e.scrollWidth - e.clientWidth")) == 0  # the tables fit the screen


def test_answers_of_the_committed_records_add_up(real: Page) -> None:
    """Scores kept per answer give the suite's mean, through packing and unpacking."""
    real.open("#board=tiny/sp-same&method=dskd-v2/kl&suite=vicuna")
    real.run("document.querySelectorAll('#answers button').forEach(e => { while (!e.hidden) e.click() })")
    scores = [float(text) for text in real.texts("#answers .items:not(.pinned) .item summary .number")]
    assert len(scores) == 120
    record = next(r for r in Store(ROOT / "results").all("tiny")
                  if (r["spec"]["pair"], r["spec"]["method"]) == ("tiny/sp-same", "dskd-v2/kl"))  # fmt: skip
    assert record["scores"]["vicuna"]["items"] == 120
    shown = next(row for row in _rows(real) if row[0] == "vicuna")
    assert sum(scores) / 120 == pytest.approx(float(shown[3].split()[0]), abs=0.01)
