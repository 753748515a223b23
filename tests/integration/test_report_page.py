"""The page of a recorded run, opened in a real browser: what it draws is what the store holds."""

import json
import math
import os
from pathlib import Path

import pytest

from mp_plugin.report.page import build_page
from mp_plugin.telemetry.store import open_run
from tests.helpers.browser import IS_THERE, browser, looks
from tests.helpers.planted_runs import info, overflow, planted_run, sample
from tests.helpers.recorded_runs import DRIFTING, HOSTILE_NAMES, layer_names, record_run

# One browser for the file.
pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not IS_THERE and not os.environ.get("CI"), reason="there is no chromium here; CI installs it"),
]

SCREENS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]
MEASURES = ("headroom", "underflow", "flushed", "saturation", "non_finite", "amax")


@pytest.fixture(scope="module")
def driver():
    with browser() as driver:
        yield driver


@pytest.fixture
def page(driver, tmp_path):
    """A page of a run with hostile names, opened at desktop width; its console and its requests are empty after."""
    run = open_run(record_run(tmp_path / "run", num_layers=8, num_samples=12, hostile=True))
    opened = Page(driver, run, tmp_path / "report.html")
    opened.show()
    yield opened
    assert opened.console() == []
    assert opened.requests() == []


class Page:
    def __init__(self, driver, run, path):
        self.driver, self.run, self.path = driver, run, path
        path.write_text(build_page(run), encoding="utf-8")

    def show(self, *, width=1280, theme="light"):
        looks(self.driver, width=width, theme=theme)
        self.driver.get("about:blank")
        self.console(), self.requests()
        self.driver.get(self.path.as_uri())
        self.wait("return document.querySelectorAll('.js-plotly-plot .main-svg').length >= 3")

    def wait(self, script):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(script))

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def choose(self, name, value):
        self.js("document.querySelector(`input[name=${arguments[0]}][value='${arguments[1]}']`).click()", name, value)

    def click_cell(self, layer, column):
        """Click where a cell of the heat map is drawn."""
        from selenium.webdriver.common.action_chains import ActionChains

        chart = self.driver.find_element("id", "heat-chart")
        self.js("arguments[0].scrollIntoView({block: 'center'})", chart)
        place = """
            const chart = document.querySelector("#heat-chart");
            const { xaxis, yaxis } = chart._fullLayout;
            const [left, right] = chart.data[0].x.slice(arguments[1], arguments[1] + 2);
            const box = chart.getBoundingClientRect();
            return [xaxis._offset + xaxis.d2p((left + right) / 2) - box.width / 2,
                    yaxis._offset + yaxis.d2p(arguments[0]) - box.height / 2];
        """
        x, y = self.js(place, layer, column)
        ActionChains(self.driver).move_to_element_with_offset(chart, int(x), int(y)).pause(0.3).click().perform()

    def table(self):
        """The table of the layer that is shown: by its steps, the number in each cell and its text."""
        rows = self.js(
            "return [...document.querySelectorAll('#layer-table tbody tr')].map(row => [row.children[0].textContent,"
            "[...row.querySelectorAll('td')].map(cell => [cell.dataset.value, cell.textContent])])"
        )
        return {step: dict(zip(MEASURES, cells, strict=True)) for step, cells in rows}

    def rows(self, kind, layer):
        """What the store has of a layer, by step."""
        rows = self.run.samples.to_pylist()
        return {row["step"]: row for row in rows if (row["kind"], row["layer"]) == (kind, layer)}

    def console(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Addresses that the page asked for, other than itself."""
        logged = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = [each["params"]["request"]["url"] for each in logged if each["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:", "about:", self.path.as_uri()))]


def measured(row):
    """The measures of a sample that stands alone, by their definitions."""
    nonzero = row["numel"] - row["zeros"] - row["nans"] - row["infs"]
    return {
        "headroom": row["headroom_bits"],
        "underflow": (row["flushed"] + row["subnormal"]) / nonzero,
        "flushed": row["flushed"] / nonzero,
        "saturation": row["saturated"] / nonzero,
        "non_finite": (row["nans"] + row["infs"]) / row["numel"],
        "amax": row["amax"],
    }


@pytest.mark.parametrize("kind", ["activation", "activation_gradient", "parameter_gradient"])
def test_numbers_on_the_page_are_those_in_the_store(page, kind):
    kinds = page.js("return data.kinds")
    page.choose("kind", kinds.index(kind))
    names = layer_names(8, hostile=True)
    for place in (0, DRIFTING, 7):
        page.js("const pick = document.querySelector('#layer'); pick.value = arguments[0];"
                "pick.dispatchEvent(new Event('change'))", place)  # fmt: skip
        table = page.table()
        stored = page.rows(kind, names[place])
        assert list(table) == [f"{step:,}" for step in stored]
        for step, row in stored.items():
            for measure, expected in measured(row).items():
                value, text = table[f"{step:,}"][measure]
                assert float(value) == pytest.approx(expected, rel=2**-12, abs=1e-7)
                digits = text.replace("\N{MINUS SIGN}", "-").removesuffix(" bits").removesuffix("%")
                shown = float(digits) / (100 if text.endswith("%") else 1)
                assert shown == pytest.approx(expected, rel=6e-3, abs=1e-7)


def test_a_click_shows_the_layer_and_its_exponents(page):
    names = layer_names(8, hostile=True)
    page.choose("kind", page.js("return data.kinds.indexOf('activation_gradient')"))
    for layer in (0, 7):
        page.click_cell(layer, 5)
        page.wait(f"return state.layer === {layer}")
        assert page.js("return document.querySelector('#layer-name').textContent") == names[layer]
        rows = page.rows("activation_gradient", names[layer])
        counts = {}
        for row in rows.values():
            for place, count in enumerate(row["exponent_counts"]):
                counts[row["lowest_exponent"] + place] = counts.get(row["lowest_exponent"] + place, 0) + count
        bars, line = page.js("return document.querySelector('#exponent-chart').data.slice(0, 2)")
        drawn = {round(x + 0.5): y for x, y in zip(bars["x"], bars["y"], strict=True) if y}
        total = sum(counts.values())
        assert drawn == pytest.approx({each: 100 * count / total for each, count in counts.items() if count})
        # The outline begins where the lowest bin begins, times the newest loss scale.
        scale = list(rows.values())[-1]["loss_scale"]
        assert line["x"][0] == bars["x"][0] - 0.5 + math.log2(scale)


def test_the_ranges_of_the_formats_are_drawn(page):
    page.choose("kind", 0)
    normal, subnormal = page.js("return document.querySelector('#exponent-chart').data.slice(-2)")
    ends = {
        name: (low, middle, middle + length)
        for name, low, middle, length in zip(normal["y"], subnormal["base"], normal["base"], normal["x"], strict=True)
    }
    assert ends == {
        "fp16": pytest.approx((-24, -14, math.log2(65504))),
        "bf16": pytest.approx((-133, -126, math.log2(255 * 2.0**120))),
        "e4m3": pytest.approx((-9, -6, math.log2(448))),
        "e5m2": pytest.approx((-16, -14, math.log2(57344))),
    }


def test_the_heat_map_switches(page):
    cells = {}
    for measure in MEASURES:
        page.choose("measure", measure)
        cells[measure] = page.js("return document.querySelector('#heat-chart').data[0].z")
        assert page.js("return document.querySelector('#measure-title').textContent")
    kind = page.js("return data.kinds[state.kind]")
    row = page.rows(kind, layer_names(8, hostile=True)[DRIFTING])[300]
    assert cells["headroom"][DRIFTING][3] == pytest.approx(row["headroom_bits"], rel=2**-12)
    assert cells["amax"][DRIFTING][3] == pytest.approx(math.log2(row["amax"]), abs=1e-3)
    assert len({json.dumps(each) for each in cells.values()}) > 3


def test_hovering_tells_the_numbers(page):
    page.choose("kind", 0)
    page.click_cell(0, 3)
    page.wait("return document.querySelector('#heat-chart .hoverlayer').textContent.includes('step 300')")
    text = page.js("return document.querySelector('#heat-chart .hoverlayer').textContent")
    row = page.rows("activation", HOSTILE_NAMES[0])[300]
    assert HOSTILE_NAMES[0] in text
    assert f"{row['headroom_bits']:.4g} bits" in text


def test_the_loss_scale_is_that_of_the_store(page):
    traces = page.js("return document.querySelector('#scale-chart').data")
    (line,) = [trace for trace in traces if trace["name"] == "Loss scale"]
    known = {row["step"]: row["loss_scale"] for row in page.run.samples.to_pylist() if row["kind"] != "activation"}
    for step, exponent in zip(line["x"], line["y"], strict=True):
        if step in known:
            assert 2**exponent == known[step]
    marks = [(step, trace["name"]) for trace in traces if trace["mode"] == "markers" for step in trace["x"]]
    expected = [(each.step, f"Incident: {each.cause.value}") for each in page.run.incidents]
    assert sorted(marks) == sorted(expected)


@pytest.mark.parametrize(("width", "theme"), SCREENS)
def test_screens(page, tmp_path, width, theme):
    import base64

    page.show(width=width, theme=theme)
    assert page.js("return document.documentElement.scrollWidth") <= width
    wide = page.js("return [...document.querySelectorAll('.main-svg')].map(each => each.getBoundingClientRect().right)")
    assert max(wide) <= width
    background = page.js("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(each) for each in background.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness > 600) == (theme == "light")
    picture = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path = tmp_path / f"{theme}-{width}.png"
    path.write_bytes(base64.b64decode(picture["data"]))
    assert path.stat().st_size > 20_000


def test_the_reader_can_switch_to_dark(page):
    before = page.js("return getComputedStyle(document.body).backgroundColor")
    page.driver.find_element("id", "theme").click()
    assert page.js("return getComputedStyle(document.body).backgroundColor") != before
    assert page.js("return document.querySelector('#scale-chart').layout.font.color") == page.js("return theme().muted")


def test_on_paper_the_charts_are_there_and_light(page):
    page.show(theme="dark")
    page.js("dispatchEvent(new Event('beforeprint'))")
    assert page.js("return theme().isDark") is False
    assert page.js("return document.querySelectorAll('.js-plotly-plot .main-svg').length") >= 3
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js("return theme().isDark") is True


def test_paper_is_light_though_the_reader_chose_dark(page):
    page.driver.find_element("id", "theme").click()
    assert page.js("return theme().isDark") is True
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.js("return getComputedStyle(document.documentElement).colorScheme") == "light"
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_everything_is_reached_by_keyboard(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    reached = set()
    for _ in range(25):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.add(page.js("const at = document.activeElement; return at.name || at.id || at.tagName"))
    assert {"theme", "kind", "measure", "layer", "samples", "SUMMARY"} <= reached


def test_without_charts_the_tables_are_there(driver, tmp_path):
    """In a browser that cannot unpack them, as one from before 2023."""
    run = open_run(record_run(tmp_path / "run"))
    page = Page(driver, run, tmp_path / "report.html")
    script = driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete window.DecompressionStream"}
    )
    try:
        driver.get(page.path.as_uri())
        assert "need a browser from 2023" in driver.find_element("id", "no-charts").text
        assert not driver.find_element("id", "heat-chart").is_displayed()
        page.js("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        text = driver.find_element("tag name", "main").text
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    for name in layer_names(6):
        assert name in text
    assert page.console() == []


def test_no_script_of_a_layer_runs(page):
    from selenium.common.exceptions import NoAlertPresentException

    assert page.js("return document.querySelectorAll('img').length") == 0
    with pytest.raises(NoAlertPresentException):
        _ = page.driver.switch_to.alert.text


GRADIENT = "parameter_gradient"


def planted(driver, tmp_path, samples, **fields):
    opened = Page(driver, planted_run(samples, **fields), tmp_path / "report.html")
    looks(driver, width=1280, theme="light")
    driver.get(opened.path.as_uri())
    opened.wait("return document.querySelectorAll('#heat-chart .main-svg').length > 0")
    return opened


def why_no_exponents(page):
    line = page.driver.find_element("id", "no-exponents")
    return line.text if line.is_displayed() else ""


def test_layers_without_samples_of_a_kind_have_no_row(driver, tmp_path):
    whole = {"smallest": 0.5, "exponents": {0: 100}}
    samples = [sample(name, **whole) for name in ("up", "relu", "down")]
    samples += [sample(name, kind=GRADIENT, amax=2.0, **whole) for name in ("up", "down")]
    page = planted(driver, tmp_path, samples)
    page.choose("kind", 1)
    page.js("pick(0)")
    assert page.js("return document.querySelector('#heat-chart').layout.yaxis.ticktext") == ["up", "down"]
    page.click_cell(1, 0)
    page.wait("return data.layers[state.layer] === 'down'")
    assert page.js("return document.querySelector('#heat-chart').layout.annotations[0].y") == 1
    assert why_no_exponents(page) == ""
    page.js("pick(1)")
    assert why_no_exponents(page) == "This layer has no samples of parameter gradients."
    assert page.js("return document.querySelector('#heat-chart').layout.annotations") == []
    page.choose("kind", 0)
    assert page.js("return document.querySelector('#heat-chart').layout.annotations[0].y") == 1
    assert page.console() == []


def test_why_there_are_no_exponents(driver, tmp_path):
    samples = [sample("nan", amax=0.0, nans=100), sample("zero", amax=0.0, zeros=100), sample("uncounted")]
    page = planted(driver, tmp_path, samples)
    said = [page.js("pick(arguments[0])", place) or why_no_exponents(page) for place in range(3)]
    assert ["Every sampled value is zero, NaN or Inf" in each for each in said] == [True, True, False]
    assert "Telemetry(histograms=True)" in said[2]
    assert page.console() == []


def test_colours_spread_over_headroom_that_is_ample(driver, tmp_path):
    samples = [sample("a", step=step, compute_dtype="bf16", amax=2.0**step) for step in range(0, 12, 3)]
    page = planted(driver, tmp_path, samples)
    assert page.js("return find('input[name=measure]:checked').value") == "amax"
    page.choose("measure", "headroom")
    drawn = page.js(
        "const { zmin, zmax, z } = document.querySelector('#heat-chart').data[0]; return [zmin, zmax, z[0]]"
    )
    assert drawn[0] <= min(drawn[2]) < drawn[0] + 1
    assert drawn[1] - 1 < max(drawn[2]) <= drawn[1]
    tight = [sample("a", step=step, amax=2.0**step) for step in range(0, 12, 3)]
    page = planted(driver, tmp_path, tight)
    assert page.js("const { zmin, zmax } = document.querySelector('#heat-chart').data[0]; return [zmin, zmax]") == [
        -1,
        20,
    ]


def test_a_run_that_only_overflowed_opens_on_what_was_not_finite(driver, tmp_path):
    samples = [sample("net", step=step, kind=GRADIENT, amax=0.0, infs=100) for step in (0, 5)]
    page = planted(driver, tmp_path, samples, incidents=[overflow(step) for step in range(9)])
    assert page.js("return find('input[name=measure]:checked').value") == "non_finite"
    assert page.js("return find('#measure-title').textContent") == "largest share of NaN and Inf"
    assert page.js("return document.querySelector('#heat-chart').data[0].z[0]") == [0, 0]  # of a share its logarithm
    assert page.js("return document.querySelector('#heat-chart').layout.xaxis.range") == [0, 9]
    assert page.console() == []


def test_incidents_after_the_last_sample_are_on_the_heat_map(driver, tmp_path):
    for steps in ([0], [0, 2]):
        page = planted(driver, tmp_path, [sample("a", step=step) for step in steps], incidents=(overflow(40),))
        assert page.js("return document.querySelector('#heat-chart').layout.xaxis.range") == [0, 41]


def test_drift_that_was_not_finite_is_a_cross(driver, tmp_path):
    known, lost = ({"event": "drift", "logits_relative_error": 0.01, "step": step} for step in (10, 20))
    lost |= {"logits_relative_error": None, "lost_logits": 3}
    page = planted(driver, tmp_path, [sample("a")], events=(known, lost, {**known, "step": 30}))
    line, crosses = page.js("return document.querySelector('[data-drift=logits_relative_error]').data")
    assert (line["x"], line["y"]) == ([10, 20, 30], [0.01, None, 0.01])
    assert crosses["x"] == [20]
    assert page.console() == []


def test_a_run_of_every_sort_draws_without_complaint(driver, tmp_path):
    sorts = {
        "bf16": {"precision": "bf16-mixed"},
        "fp32": {"precision": "32-true", "incidents": 0},
        "no histograms": {"histograms": False},
        "one": {"num_layers": 1, "num_samples": 1},
        "going on": {"status": "running", "incidents": 0},
    }
    for name, options in sorts.items():
        page = Page(driver, open_run(record_run(tmp_path / name, **options)), tmp_path / f"{name}.html")
        driver.get(page.path.as_uri())
        page.wait("return document.querySelectorAll('#heat-chart .main-svg').length > 0")
        assert page.console() == [], name


def test_a_run_without_samples_draws_without_complaint(driver, tmp_path):
    record_run(tmp_path / "run")
    for part in Path(tmp_path, "run", "telemetry", "stats").iterdir():
        part.unlink()
    page = Page(driver, open_run(tmp_path / "run"), tmp_path / "report.html")
    driver.get(page.path.as_uri())
    page.wait("return document.documentElement.classList.contains('has-charts')")
    assert page.console() == []


@pytest.mark.parametrize(("num_steps", "end"), [(1320, 1320), (1201, 1212)])
def test_nothing_is_drawn_beyond_the_end_of_the_run(driver, tmp_path, num_steps, end):
    whole = {"smallest": 0.5, "exponents": {0: 100}, "loss_scale": 1024.0}
    samples = [sample("up", kind=GRADIENT, step=step, **whole) for step in (0, 100, 1200)]
    page = planted(driver, tmp_path, samples, info=info(steps=num_steps))
    band = page.js("return document.querySelector('#scale-chart').data[0].x")
    assert max(step for step in band if step is not None) == end
    assert page.js("return document.querySelector('#heat-chart').data[0].x") == [0, 100, 1200, end]
