"""The index of the guides leads to every page."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_every_page_is_there_once():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    listed = Counter(re.findall(r"\]\(([a-z0-9_]+\.md)\)", INDEX))
    assert set(listed) == pages
    assert [page for page, number in listed.items() if number > 1] == []


def test_links_have_the_titles_of_their_pages():
    wrong = []
    for title, page in re.findall(r"\[([^\]]+)\]\(([a-z0-9_]+\.md)\)", INDEX):
        heading = (ROOT / "docs" / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        if not heading.startswith(title):
            wrong.append(f"{page} is called {heading}, not {title}")
    assert not wrong


def test_the_readme_leads_to_it():
    assert "](docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
