"""The table of cache sizes in docs/performance.md is what its command prints."""

from pathlib import Path

from benchmarks import cache_bytes

PAGE = Path(__file__).resolve().parents[3] / "docs" / "performance.md"


def test_the_documented_sizes_are_those_of_the_files(capsys):
    assert cache_bytes.main() == 0
    assert capsys.readouterr().out in PAGE.read_text(encoding="utf-8")
