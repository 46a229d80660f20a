"""From a template and its content to one HTML file that needs no other file and no network."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **content: Any) -> bytes:
    """Returns a page as UTF-8. All content is escaped, except for what is marked as HTML.

    The page's security policy allows its own style sheet and script, by their checksums, and pictures that are part of
    the page. The browser refuses everything else: addresses on a network, and scripts that a name might hold.

    Args:
        template: name of a file in the folder of templates.
        content: names and values for the template.
    """
    style, script = (_text(name) for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_checksum(style)}'; script-src '{_checksum(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page: str = _environment().get_template(template).render(content, style=style, script=script, policy=policy)
    # Names of folders may hold bytes that are not text.
    return page.encode(errors="replace")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").strip()


def _checksum(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
