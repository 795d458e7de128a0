"""The documentation is a site: it builds, every page is in it, and every link leads somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from threatbus.config import yaml12

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(
    [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("apps/*/README.md")]
)


def text_of(page: Path) -> str:
    """A page without its code, in which what looks like a link is none."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page as anchors, as GitHub and the site make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    return [each for each in found if not re.match(r"[a-z]+:", each)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), link
        if anchor:
            assert anchor in anchors(found), link


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_of_the_site_links_to_nothing_outside_of_it(page: Path) -> None:
    assert [link for link in links(page) if link.startswith("..")] == []


def in_navigation(entries: Any) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entries, str):
        return [entries]
    parts = entries.values() if isinstance(entries, dict) else entries
    return [page for part in parts for page in in_navigation(part)]


def test_the_navigation_has_every_page_once() -> None:
    config = yaml12.parse((ROOT / "mkdocs.yml").read_text(), "mkdocs.yml")
    assert sorted(in_navigation(config["nav"])) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    # A copy, since it writes beside its source.
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    program = Path(sys.executable).parent / "zensical"
    done = subprocess.run(
        [program, "build", "--strict", "--clean"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in DOCS.glob("*.md"):
        place = "" if page.stem == "index" else page.stem
        html = (tmp_path / "site" / place / "index.html").read_text(encoding="utf-8")
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert title.replace("'", "&#39;") in html.replace("&#x27;", "&#39;") or title in html
    # It needs nothing from elsewhere to be read.
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'<(?:script|link rel="stylesheet")[^>]*(?:src|href)="https?://', start)
