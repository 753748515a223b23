"""A run as one HTML page that needs nothing else: no network, no server, no other file."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from plotly.offline import get_plotlyjs

from mp_plugin._version import __version__
from mp_plugin.report.embed import packed
from mp_plugin.report.incident_groups import incident_groups
from mp_plugin.report.page_advice import page_advice
from mp_plugin.report.page_data import PageData
from mp_plugin.report.page_words import FILTERS, figures, layers_by_format, session, title
from mp_plugin.report.sample_cost import sample_cost
from mp_plugin.report.verdict import verdict
from mp_plugin.report.worst_layers import worst_layers
from mp_plugin.telemetry.advise import JUDGED
from mp_plugin.telemetry.store import Run

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("data.js", "charts.js", "heat_map.js", "page.js")
LISTED_LAYERS = 40
LISTED_GROUPS = 100
LISTED_INCIDENTS = 500
"""In tables: the charts know them all."""


def build_page(run: Run) -> str:
    """Return a run as a page of HTML.

    Names and texts of the run are escaped, and the page's own policy forbids scripts that are not its own, and the
    network.

    Args:
        run: finished, killed or still going on; whatever it lacks is left out, and said.
    """
    advice = page_advice(run)  # first, as it takes the most memory
    listed = worst_layers(run, LISTED_LAYERS)
    data = PageData(run, listed[0] if listed else None)
    groups = incident_groups(run.incidents)
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    plotly = get_plotlyjs()
    return _template().render(
        run=run,
        title=title(run),
        version=__version__,
        verdict=verdict(run),
        figures=figures(run, data),
        session=session(run, data),
        cost=sample_cost(run),
        data=data,
        listed_layers=listed,
        groups=groups[:LISTED_GROUPS],
        num_groups=len(groups),
        newest_incidents=run.incidents[-LISTED_INCIDENTS:],
        by_format=layers_by_format(run),
        judged=JUDGED,
        page_advice=advice,
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        script=script,
        packed_data=data.packed(),
        packed_plotly=_packed_plotly(),
        policy=_policy(script, plotly),
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("page.html")


@cache
def _packed_plotly() -> str:
    return packed(get_plotlyjs().encode())


def _policy(*scripts: str) -> str:
    """Return a content security policy under which these scripts run, no others, and nothing is loaded."""
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Plotly writes styles, and draws heat maps as images of its own making.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
