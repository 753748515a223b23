import base64
import gzip
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from mp_plugin.report.page import build_page
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import open_run
from tests.helpers.planted_runs import info, overflow, planted_run, sample
from tests.helpers.recorded_runs import HOSTILE_NAMES, record_run

LOADING = {"src", "href", "srcset", "action", "data", "poster", "formaction", "background"}
"""Attributes that make a browser fetch something."""
EMPTY = {"meta", "link", "br", "input", "wbr", "img"}


class Page(HTMLParser):
    """What of a page matters to its tests."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.scripts, self.words, self.headings = [], [], {}, [], []
        self.policy = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.append((tag, known))
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"]
        if tag not in EMPTY:
            self.open.append((tag, known))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not self.open:
            return
        tag, known = self.open[-1]
        if tag == "script":
            self.scripts[known.get("id", "page")] = data
        elif tag != "style":
            self.words.append(data)
        if any(tag == "h2" for tag, _ in self.open):
            self.headings.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    @property
    def data(self):
        content = gzip.decompress(base64.b64decode(self.scripts["data"]))
        return json.loads(content[8 : 8 + int(content[:8])])


def page_of(run):
    return Page(build_page(run))


def digest(script):
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def drift(step, **values):
    return {"event": "drift", "step": step, **values}


def test_the_sections_come_in_this_order(tmp_path):
    run = open_run(record_run(tmp_path))
    run = replace(run, events=(drift(10, logits_relative_error=0.01),))
    assert page_of(run).headings == [
        "Loss scale",
        "Layers",
        "Incidents",
        "Precision map",
        "Formats that would do",
        "Drift from FP32",
        "Cost of telemetry",
        "Environment",
    ]


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = page_of(open_run(record_run(tmp_path, hostile=True)))
    loaded = [known[name] for _, known in page.tags for name in LOADING & known.keys()]
    assert set(loaded) == {"#main", "data:,"}
    assert page.policy.startswith("default-src 'none'; ")
    assert "http:" not in page.policy.replace("https:", "http:")


def test_only_the_scripts_of_the_page_may_run(tmp_path):
    page = page_of(open_run(record_run(tmp_path, hostile=True)))
    allowed = re.findall(r"'sha256-([^']+)'", page.policy)
    plotly = gzip.decompress(base64.b64decode(page.scripts["plotly"])).decode()
    assert plotly == get_plotlyjs()
    assert allowed == [digest(page.scripts["page"]), digest(plotly)]
    assert set(page.scripts) == {"data", "plotly", "page"}
    assert "unsafe" not in page.policy.replace("style-src 'unsafe-inline'", "")
    assert not [name for _, known in page.tags for name in known if name.startswith("on")]


def test_hostile_names_are_text(tmp_path):
    page = page_of(open_run(record_run(tmp_path, hostile=True)))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    for name in HOSTILE_NAMES[:3]:
        assert name in page.text
        assert name in page.data["layers"]
    # What would turn the text around it is shown as what it is.
    assert "\u202e" not in page.text + "".join(page.data["layers"])


def test_hostile_texts_of_incidents_are_text():
    evil = "<script>alert(1)</script>"
    fields = dict.fromkeys(("operator", "location", "reason", "layer"), evil)
    incident = overflow(3, **fields, culprits=(evil,))
    page = page_of(planted_run(incidents=(incident,), directory=Path("<img src=x onerror=alert(1)>")))
    assert page.text.count(evil) >= 5
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "img" not in dict(page.tags)
    assert set(page.scripts) == {"data", "plotly", "page"}


def test_incidents_are_told_with_operator_line_and_cure():
    run = planted_run(incidents=(overflow(3), overflow(9, culprits=("net.head",))), info=info(steps=10))
    text = page_of(run).text
    assert "2 incidents of 1 origin" in text
    assert "aten.addmm.default" in text
    assert "model.py:57 in forward" in text
    assert "overflow: 70,000 is beyond the largest fp16 number, 65,504" in text
    assert "2 times, steps 3 to 9" in text
    assert "Fallback(auto=True) runs in fp32 what has to be" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"histograms": False}, "Above the dotted line some layer overflows"),
        ({"precision": "bf16-mixed"}, "This run scaled no loss."),
        ({"precision": "32-true", "incidents": 0}, "no step had gradients that were not finite"),
        ({"status": "running", "incidents": 0}, "None so far"),
        ({"num_layers": 1, "num_samples": 1}, "Each cell is one sampled step"),
        ({"num_samples": 300, "num_layers": 1}, "Each cell is the worst of up to 2 neighbouring samples"),
        ({"kinds": [TensorKind.parameter_gradient]}, "Parameter gradients"),
        ({"with_map": False}, "This run left none"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_runs_of_all_sorts(tmp_path, options, said):
    assert said in page_of(open_run(record_run(tmp_path, **options))).text


def test_a_run_with_incidents_alone(tmp_path):
    record_run(tmp_path)
    shutil.rmtree(tmp_path / "telemetry" / "stats")
    (tmp_path / "telemetry" / "run.json").unlink()
    (tmp_path / "precision_map.yaml").unlink()
    page = page_of(open_run(tmp_path))
    assert "No samples were recorded." in page.text
    assert "2 incidents of 2 origins" in page.text
    assert "run.json is missing or damaged" in page.text
    assert [mark["step"] for mark in page.data["marks"]] == [166, 333]


def test_a_run_that_left_nothing():
    page = page_of(planted_run())
    assert "No samples were recorded." in page.text
    assert "No loss scale is on record." in page.text


def test_damaged_parts_are_named(tmp_path):
    record_run(tmp_path, num_samples=50)
    part = sorted((tmp_path / "telemetry" / "stats").glob("*.parquet"))[-1]
    part.write_bytes(part.read_bytes()[:100])
    (tmp_path / "telemetry" / "run.json").write_text("{")
    text = page_of(open_run(tmp_path)).text
    assert "2 parts of this run could not be read" in text
    assert part.name in text


@pytest.mark.parametrize(
    "summary",
    [{"loss_scale": 3}, {"telemetry": []}, {"telemetry": {"share": "x"}}, {"steps": None, "skipped_steps": "x"}],
    ids=str,
)
def test_a_summary_of_another_shape_spoils_nothing(summary):
    about = info()
    run = planted_run([sample("net")], info=replace(about, summary={**about.summary, **summary}))
    if "steps" in summary:
        run = replace(run, info=replace(about, summary={"steps": 5, "skipped_steps": 0, "retried_steps": None}))
    assert "Cost of telemetry" in page_of(run).text


def test_drift_is_drawn_if_it_was_measured():
    known = drift(10, logits_relative_error=0.01, changed_predictions=None, loss_difference=-0.5, batches=4)
    page = page_of(planted_run(events=(known, drift(20, logits_relative_error=0.02), {"event": "drift"})))
    charts = [known["data-drift"] for _, known in page.tags if "data-drift" in known]
    assert charts == ["logits_relative_error", "loss_difference"]
    assert page.data["drift"] == [
        {"step": 10, "values": {"logits_relative_error": 0.01, "loss_difference": -0.5}, "lost": []},
        {"step": 20, "values": {"logits_relative_error": 0.02}, "lost": []},
    ]
    assert "Crosses" not in page.text
    assert "Drift from FP32" not in page_of(planted_run()).text


def test_drift_that_was_not_finite_is_explained():
    lost = drift(20, logits_relative_error=None, lost_logits=3)
    page = page_of(planted_run(events=(drift(10, logits_relative_error=0.01), lost)))
    assert [each["lost"] for each in page.data["drift"]] == [[], ["logits_relative_error"]]
    assert "Crosses at the top" in page.text
    assert "20not finite" in page.text


def test_layers_that_cannot_be_judged_are_in_the_legend():
    def kept(step, layer, **changes):
        return sample(layer, step=step, smallest=0.5, exponents={0: 100}, **changes)

    incidents = (overflow(0, layer="early"), overflow(1, layer="early"))
    spoiled = [sample("late", step=step, amax=0.0, nans=100) for step in (0, 1)]
    page = page_of(planted_run([kept(0, "early"), kept(1, "early"), *spoiled], incidents=incidents))
    strips = [known["class"] for tag, known in page.tags if tag == "i"]
    assert strips == ["f-fp32", "f-unknown"] * 2  # the strip, then its legend
    assert "not known, as each sample had NaN or Inf: 1 layer" in page.text
    assert ".f-unknown" in build_page(planted_run())


def test_one_layer_is_one_layer():
    about = info(steps=3, skipped=1, fp32_layers={"net.head": "chosen"}, retried_steps=1)
    text = page_of(planted_run([sample("net")], info=about)).text
    for each in ("1layer, as chosen", "1step lost", "1step saved", "1of 1 layer"):
        assert each in text


def test_only_a_run_that_scaled_its_loss_speaks_of_it(tmp_path):
    for precision, is_said in (("16-mixed", True), ("bf16-mixed", False), ("32-true", False)):
        text = page_of(open_run(record_run(tmp_path / precision, precision=precision))).text
        assert ("gradients times the loss scale" in text) == is_said
        assert ("layers in FP32 may lie beyond it" in text) == (precision != "32-true")


def test_the_band_says_what_it_does_not_see(tmp_path):
    text = page_of(open_run(record_run(tmp_path))).text
    assert "What fp16 flushed to zero during the run itself is a zero here, and not seen." in text


def test_gradients_that_were_never_finite_leave_no_bounds_of_the_scale():
    def broken(step):
        return sample("net", step=step, kind="parameter_gradient", amax=0.0, nans=100, loss_scale=2.0**-step)

    text = page_of(planted_run([broken(0), broken(5)])).text
    assert "which scale would have fitted is not known" in text
    assert "dotted" not in text


def test_a_short_training_shows_seconds_in_place_of_a_share():
    spent = {"taken": 3, "left_out": 0, "seconds": 0.25, "training_seconds": 2.5, "share": 0.1}
    text = page_of(planted_run([sample("net")], info=info(telemetry=spent))).text
    assert "0.25 s" in text
    assert "10%" not in text
    text = page_of(planted_run([sample("net")], info=info(telemetry={**spent, "training_seconds": 25.0}))).text
    assert "1.0% of the training time" in text


def test_the_run_is_named_with_its_folder():
    text = build_page(planted_run(directory=Path("logs/<b>lightning/version_0")))
    assert "<title>Precision of &lt;b&gt;lightning/version_0</title>" in text
    assert "Precision of runs/7" in build_page(planted_run())


def test_many_incidents_keep_the_page_small():
    everywhere = tuple(overflow(step, location=f"model.py:{step}") for step in range(3000))
    text = build_page(planted_run(incidents=everywhere))
    assert len(text) < 4e6
    page = Page(text)
    assert sum(mark["count"] for mark in page.data["marks"]) == 3000
    assert len(page.data["marks"]) <= 2000
    assert "3,000 incidents of 3,000 origins, the most frequent first; 100 are listed" in page.text


def test_the_same_run_makes_the_same_page(tmp_path):
    run = open_run(record_run(tmp_path))
    assert build_page(run) == build_page(run)
