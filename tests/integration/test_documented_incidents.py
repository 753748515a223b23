"""The incidents that docs/incidents.md shows are real: planted here, and printed as the page prints them."""

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mp_plugin.telemetry.panel import incident_panel
from tests.helpers.faults.catalogue import fault
from tests.helpers.faults.fit import train

PAGE = Path(__file__).parents[2] / "docs" / "incidents.md"
SHOWN = dict(re.findall(r"<!-- incident: (.*?) -->\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


def test_the_page_shows_three() -> None:
    assert len(SHOWN) == 3


@pytest.mark.parametrize("name", SHOWN)
def test_what_the_page_shows_is_what_is_printed(name: str) -> None:
    console = Console(width=88, file=StringIO())
    console.print(incident_panel(train(fault(name)).incidents[0]))
    assert console.file.getvalue() == SHOWN[name]  # type: ignore[attr-defined]
