"""Every link within the documentation leads somewhere: the file is there, and the heading too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_links = re.compile(r"\]\(([^)\s]+)\)").findall


def prose(page: Path) -> str:
    """A page without what is code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"(?ms)^ *```.*?^ *```", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as those who render Markdown make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _links(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
