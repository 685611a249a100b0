"""The tables of docs/memory.md are what is computed, for models of the sizes of the published ones."""

from pathlib import Path

from benchmarks.fit_table import RUNS, common_flags, fitted

PAGE = Path(__file__).resolve().parents[3] / "docs" / "memory.md"
NAME = "SD3-medium"


def rows(*begin):
    """Cells of the rows of the page that begin with these."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [cells for cells in lines if tuple(cells[: len(begin)]) == begin]


def test_what_the_page_says_of_a_card_is_what_is_chosen_for_it(tmp_path):
    chosen = fitted(RUNS[0], common_flags(RUNS[0], tmp_path, NAME), "8GB")
    own = next(cells for cells in rows(NAME) if "`8GB`" in cells[1])
    # host memory has in it what this process takes already, which here are other tests, too
    assert tuple(own[2:-1]) == chosen[:-1] and float(chosen[-1]) >= float(own[-1]) - 0.1
    (of_setting,) = rows("caches, `--gradient_checkpointing`")
    assert of_setting[1] == chosen[1]
