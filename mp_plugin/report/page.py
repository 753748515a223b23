"""A run as one HTML page that needs nothing else: no network, no server, no other file."""

from mp_plugin.report.incident_groups import incident_groups
from mp_plugin.report.page_advice import page_advice
from mp_plugin.report.page_data import PageData
from mp_plugin.report.page_words import FILTERS, figures, layers_by_format, session, title
from mp_plugin.report.sample_cost import sample_cost
from mp_plugin.report.shell import ASSETS, render
from mp_plugin.report.verdict import verdict
from mp_plugin.report.worst_layers import worst_layers
from mp_plugin.telemetry.advise import JUDGED
from mp_plugin.telemetry.store import Run

SCRIPTS = tuple(ASSETS / name for name in ("charts.js", "heat_map.js", "page.js"))
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
    return render(
        ASSETS / "page.html",
        scripts=SCRIPTS,
        filters=FILTERS,
        packed_data=data.packed(),
        run=run,
        title=title(run),
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
    )
