"""The page of a comparison, opened in a real browser: what it draws is what was compared."""

import json
import os

import pytest

from mp_plugin.compare import build_comparison_page, compare_runs
from mp_plugin.compare.statistics import equivalence_interval
from tests.helpers.browser import IS_THERE, browser, looks
from tests.helpers.compared_runs import EQUIVALENT, FP32, WORSE, write_run, write_sweep

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not IS_THERE and not os.environ.get("CI"), reason="there is no chromium here; CI installs it"),
]

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def driver():
    with browser() as driver:
        yield driver


class Page:
    def __init__(self, driver, comparison, path):
        self.driver, self.path = driver, path
        path.write_text(build_comparison_page(comparison), encoding="utf-8")

    def show(self, *, width=1280, theme="light"):
        from selenium.webdriver.support.ui import WebDriverWait

        looks(self.driver, width=width, theme=theme)
        self.driver.get("about:blank")
        self.console(), self.requests()
        self.driver.get(self.path.as_uri())
        charts = "return document.querySelectorAll('#values-chart .main-svg').length > 0"
        WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(charts))

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def console(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Addresses that the page asked for, other than itself."""
        logged = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = [each["params"]["request"]["url"] for each in logged if each["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:", "about:", self.path.as_uri()))]


@pytest.fixture
def comparison(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {"fp32": FP32, "bf16": EQUIVALENT, "fp16": WORSE})
    write_run(sweep / "crashed", "bf16", 9, status="failed")
    return compare_runs([sweep], fail_if_worse=0.01)


@pytest.fixture
def page(driver, comparison, tmp_path):
    opened = Page(driver, comparison, tmp_path / "compare.html")
    opened.show()
    yield opened
    assert opened.console() == []
    assert opened.requests() == []


def test_the_charts_show_what_was_compared(page, comparison):
    traces = "return find('#differences-chart').data.filter(({mode}) => mode === "
    drawn = page.js(traces + "'markers').map(({x, error_x: {array, arrayminus}}) => [x[0], array[0], arrayminus[0]])")
    tested = page.js(traces + "'lines').map(({x}) => x)")
    for ends, result in zip(tested, comparison.groups[1:], strict=True):
        assert ends == pytest.approx([100 * end for end in equivalence_interval(result.results[0].difference)])
    for (mean, above, below), result in zip(drawn, comparison.groups[1:], strict=True):
        difference = result.results[0].difference
        assert mean == pytest.approx(100 * difference.mean)
        assert mean + above == pytest.approx(100 * difference.high)
        assert mean - below == pytest.approx(100 * difference.low)
    band, _, line = page.js("return find('#differences-chart').layout.shapes.map(({x0, x1}) => [x0, x1])")
    assert band == [-0.5, 0.5]
    assert line == [-1, -1]
    points = page.js("return find('#values-chart').data.filter(({mode}) => mode === 'markers').map(({y}) => y)")
    assert points == [list(FP32), list(EQUIVALENT), list(WORSE)]
    speeds = page.js("return find('#cost-1').data[0].x")
    assert speeds == pytest.approx([1.0, 2.9, 2.0])
    assert page.js("return find('[data-cost=Energy]').hidden") is True


def test_the_words_are_those_of_the_comparison(page, comparison):
    sentences = page.js("return [...document.querySelectorAll('.verdicts .sentence')].map(each => each.textContent)")
    assert sentences == [each.verdict.sentence for each in comparison.groups[1:]]
    rows = page.js("return [...document.querySelectorAll('[aria-labelledby=runs] tbody tr')].map(r => r.innerText)")
    assert len(rows) == 16
    assert "failed" in next(row for row in rows if "crashed" in row)


def test_results_that_are_all_the_same_are_not_drawn_from_zero(driver, tmp_path):
    write_sweep(tmp_path / "sweep", {"fp32": (0.75, 0.75), "bf16": (0.75, 0.75)})
    opened = Page(driver, compare_runs([tmp_path / "sweep"]), tmp_path / "compare.html")
    opened.show()
    assert opened.js("return find('#values-chart').layout.yaxis.range") == pytest.approx([0.74, 0.76])
    assert "bf16: the same test/acc as fp32" in opened.js("return document.querySelector('.sentence').textContent")
    assert opened.console() == []


@pytest.mark.parametrize(("width", "theme"), [(1280, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_the_screen_and_the_reader(page, width, theme):
    page.show(width=width, theme=theme)
    assert page.js("return document.documentElement.scrollWidth") <= width
    right = page.js(
        "return [...document.querySelectorAll('.main-svg')].map(each => each.getBoundingClientRect().right)"
    )
    assert max(right) <= width
    assert page.js("return theme().isDark") is (theme == "dark")
    font = page.js("return find('#values-chart').layout.font.color")
    assert font == page.js("return theme().muted")


def test_names_are_shown_and_never_run(driver, tmp_path):
    for number, precision in enumerate(("fp32", "bf16")):
        write_run(
            tmp_path / str(number),
            precision,
            metrics={f"test/{HOSTILE}": 1.0},
            choices={"precision": HOSTILE * number or "fp32"},
        )
    page = Page(driver, compare_runs([tmp_path]), tmp_path / "compare.html")
    page.show()
    assert page.js("return document.title").startswith("Comparison of fp32")
    assert page.js("return document.querySelectorAll('img').length") == 0
    assert page.console() == []


def test_one_precision_alone_draws_without_complaint(driver, tmp_path):
    page = Page(driver, compare_runs([write_sweep(tmp_path / "s", {"bf16": FP32})]), tmp_path / "compare.html")
    page.show()
    assert page.js("return find('#differences-chart')") is None
    assert page.console() == []
