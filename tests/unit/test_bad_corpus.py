"""The corpus of bad data is the same every time, small, and complete."""

import sys
from pathlib import Path

import bad_corpus

MAX_BYTES = 4_000_000


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_the_same_small_files_every_time(tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["bad_corpus.py", str(tmp_path / name)])
        assert bad_corpus.main() == 0
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two")
    assert sum(map(len, first.values())) < MAX_BYTES
    names = {*bad_corpus.PICTURES, *bad_corpus.NPZ_CACHES, *bad_corpus.TEXTS}
    assert names <= {Path(name).name for name in first}


def test_without_a_folder_the_command_says_what_it_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bad_corpus.py"])
    assert bad_corpus.main() == 2
    assert "python tests/bad_corpus.py FOLDER" in capsys.readouterr().err


def test_every_damage_changes_a_cache_file():
    header = b'{"__metadata__":{"kind":"text"},"a":{"dtype":"F32","shape":[4,2],"data_offsets":[0,32]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(range(32))
    damaged = {how: damage(content) for how, damage in bad_corpus.CACHE_DAMAGE.items()}
    assert len({*damaged.values(), content}) == len(damaged) + 1
