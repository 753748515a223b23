"""What every page has: one file that carries its scripts and data along, and a policy that lets nothing else in."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from mp_plugin._version import __version__
from mp_plugin.report.embed import packed

ASSETS = Path(__file__).parent / "assets"
SHARED_SCRIPTS = (ASSETS / "data.js", ASSETS / "shell.js")
"""Before those of a page, which defines what `shell.js` calls: `setUpControls` and `drawAll`."""


def render(
    template: Path,
    *,
    scripts: Sequence[Path],
    filters: Mapping[str, Callable[..., Any]],
    packed_data: str,
    **values: Any,
) -> str:
    """Return a page of HTML that needs no other file and no network.

    Args:
        template: extends `base.html`, and is filled with everything escaped.
        scripts: the page's own, which run after the shared ones.
        filters: by the name that the template calls them.
        packed_data: for the scripts; of `embed.packed_data`.
        values: by the name that the template calls them.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, ASSETS]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    script = "\n".join(each.read_text(encoding="utf-8") for each in (*SHARED_SCRIPTS, *scripts))
    return environment.get_template(template.name).render(
        **values,
        version=__version__,
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        script=script,
        packed_data=packed_data,
        packed_plotly=_packed_plotly(),
        policy=_policy(script, get_plotlyjs()),
    )


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
