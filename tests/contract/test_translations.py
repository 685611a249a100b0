"""The Chinese and Japanese guides say what the English ones say.

What can be compared without reading the language is compared: commands, headings, tables, names in backticks, figures,
links. The commands of the English pages are run by tests/end_to_end/test_documented_commands.py; those of a
translation are the same to the byte.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDES = ("index", "sd3_train_network", "dataset_config", "sdxl", "train_network", "sd3_train")
INDEX = {"index": "README"}  # as the web pages of repositories show it for a folder
LETTERS = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]"}
MIN_LETTERS = 0.5  # of the letters outside code and links
KANA, MIN_KANA = "[\u3040-\u30ff]", 0.3  # Chinese has none of these
LANGUAGES = sorted(LETTERS)
FENCE = re.compile(r"^( *)(`{3,})[^\n]*\n.*?^\1\2$", re.MULTILINE | re.DOTALL)
NOTE = re.compile(r"^<!-- .*? -->$", re.MULTILINE)
FIGURE = re.compile(r"(\d+(?:\.\d+)?)( ?[亿億])?")  # 8.6 of these are 0.86 thousand million
pages = pytest.mark.parametrize(
    ("language", "guide"), [(language, guide) for language in LANGUAGES for guide in GUIDES]
)


def path_of(guide: str, language: str = "") -> str:
    """Where a guide lies in the folder of guides; the index of a language is its README."""
    return f"{language}/{INDEX.get(guide, guide)}.md" if language else f"{guide}.md"


def page(guide: str, language: str = "") -> str:
    return (DOCS / path_of(guide, language)).read_text(encoding="utf-8")


def code_of(text: str) -> list[str]:
    """Blocks and the comments that say how they are run, in their order."""
    found = [*FENCE.finditer(text), *NOTE.finditer(FENCE.sub(lambda block: " " * len(block[0]), text))]
    return [match[0] for match in sorted(found, key=lambda match: match.start())]


def prose_of(text: str) -> str:
    """The text without blocks and comments."""
    return NOTE.sub("", FENCE.sub("", text))


def sections_of(text: str) -> list[tuple[str, str, str]]:
    """(Marks of the heading, its title, the text below it), the title of the page first."""
    parts = re.split(r"^(#+) (.*)$", prose_of(text), flags=re.MULTILINE)[1:]
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def tables_of(text: str) -> list[list[list[str]]]:
    """Tables as rows of cells; a bar behind a backslash is a letter."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", prose_of(text), re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", row.strip())[1:-1] for row in table.splitlines()] for table in found]


def names_in(text: str) -> list[str]:
    """What stands in backticks, sorted."""
    return sorted(" ".join(name.split()) for name in re.findall(r"`([^`]+)`", text))


def figures_in(text: str) -> set[float]:
    """Figures of the prose, without those in names and in the targets of links."""
    prose = re.sub(r"`[^`]+`|\]\([^)]*\)", "", text)
    return {round(float(digits) / (10 if unit else 1), 6) for digits, unit in FIGURE.findall(prose)}


def links_of(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(text))


def anchors_of(text: str) -> set[str]:
    """Names that headings have in links, by the rule of GitHub."""
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for _, title, _ in sections_of(text)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def language_line(guide: str, language: str = "") -> str:
    """The line below a title that leads to the same page in the other languages."""
    names = {"": "English", "zh": "中文", "ja": "日本語"}
    up = "../" if language else ""
    return " · ".join(f"[{name}]({up}{path_of(guide, other)})" for other, name in names.items() if other != language)


@pytest.mark.parametrize("language", ["", *LANGUAGES])
@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_leads_to_itself_in_the_other_languages(language: str, guide: str):
    assert page(guide, language).splitlines()[1:3] == ["", language_line(guide, language)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_these_pages_and_no_others(language: str):
    assert {path.name for path in (DOCS / language).iterdir()} == {
        Path(path_of(guide, language)).name for guide in GUIDES
    }


@pages
def test_the_blocks_of_a_translation_are_those_of_the_english_page(language: str, guide: str):
    assert code_of(page(guide, language)) == code_of(page(guide))


@pages
def test_the_headings_of_a_translation_have_the_same_levels_in_the_same_order(language: str, guide: str):
    levels, original = ([marks for marks, _, _ in sections_of(text)] for text in (page(guide, language), page(guide)))
    assert levels == original


@pages
def test_the_tables_of_a_translation_have_the_same_rows_and_columns(language: str, guide: str):
    translated, original = (
        [[len(row) for row in table] for table in tables_of(text)] for text in (page(guide, language), page(guide))
    )
    assert translated == original


@pages
def test_the_rows_of_a_translated_table_name_the_same_things_in_the_same_order(language: str, guide: str):
    for translated, original in zip(tables_of(page(guide, language)), tables_of(page(guide)), strict=True):
        for ours, theirs in zip(translated, original, strict=True):
            assert names_in(ours[0]) == names_in(theirs[0]), theirs
            assert set(names_in(" ".join(ours))) >= set(names_in(" ".join(theirs))), theirs


@pages
def test_the_sections_of_a_translation_have_every_name_and_figure_of_the_english_ones(language: str, guide: str):
    problems = []
    translated, original = sections_of(page(guide, language)), sections_of(page(guide))
    for (_, _, ours), (_, title, theirs) in zip(translated, original, strict=True):
        missing = {f"`{name}`" for name in set(names_in(theirs)) - set(names_in(ours))}
        missing |= {f"{figure:g}" for figure in figures_in(theirs) - figures_in(ours)}
        if missing:
            problems.append(f"{title}: without {', '.join(sorted(missing))}")
        if strange := {name for name in names_in(ours) if name not in " ".join(page(guide).split())}:
            problems.append(f"{title}: {', '.join(sorted(strange))}: not on the English page")
    assert not problems, "\n" + "\n".join(problems)


@pages
def test_the_rows_of_a_translated_table_have_the_figures_of_the_english_ones(language: str, guide: str):
    for translated, original in zip(tables_of(page(guide, language)), tables_of(page(guide)), strict=True):
        for ours, theirs in zip(translated, original, strict=True):
            assert figures_in("|".join(ours)) >= figures_in("|".join(theirs)), theirs


@pages
def test_the_sections_of_a_translation_lead_to_the_same_pages(language: str, guide: str):
    def targets(text: str, folder: Path) -> list[Path]:
        paths = [(folder / link.partition("#")[0]).resolve() for link in links_of(text) if link[0] != "#"]
        return sorted(DOCS / path.name if path.parent == DOCS / language else path for path in paths)

    translated, original = (sections_of(page(guide, of).replace(language_line(guide, of), "")) for of in (language, ""))
    for (_, _, ours), (_, title, theirs) in zip(translated, original, strict=True):
        assert targets(ours, DOCS / language) == targets(theirs, DOCS), title


@pages
def test_the_links_of_a_translation_lead_somewhere(language: str, guide: str):
    here, problems = DOCS / path_of(guide, language), []
    for link in links_of(page(guide, language)):
        path, _, anchor = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        if not target.is_file():
            problems.append(f"{link} does not exist")
        elif anchor and anchor not in anchors_of(target.read_text(encoding="utf-8")):
            problems.append(f"{link}: the page has no such heading")
        elif target.parent == DOCS and target.stem in set(GUIDES) - {guide}:
            problems.append(f"{link} is translated")
    assert not problems, "\n" + "\n".join(problems)


@pages
def test_a_translation_is_written_in_its_language(language: str, guide: str):
    sentences = re.sub(r"`[^`]+`|\[[^]]*\]\([^)]*\)", "", prose_of(page(guide, language)))
    own, kana, latin = (len(re.findall(letters, sentences)) for letters in (LETTERS[language], KANA, "[A-Za-z]"))
    assert own / (own + latin) > MIN_LETTERS
    assert kana / own > MIN_KANA if language == "ja" else kana == 0


@pages
def test_stars_of_a_translation_make_words_bold(language: str, guide: str):
    """Where a mark like 。 is inside and a letter outside, stars stay stars: CommonMark wants a space there."""
    problems = []
    for line in prose_of(page(guide, language)).splitlines():
        for number, stars in enumerate(re.finditer(r"\*\*", line)):
            around = line[: stars.start()][-1:], line[stars.end() :][:1]
            outside, inside = around if number % 2 == 0 else around[::-1]
            if re.match(r"\w", outside) and not re.match(r"\w", inside):
                problems.append(line)
    assert not problems, "\n" + "\n".join(problems)
