"""Checks at the start of a run."""

from __future__ import annotations

import pytest

from library.errors import OutputError
from library.training.checks import check_writable


def test_folders_that_would_be_made_are_fine_and_not_made(tmp_path):
    check_writable([tmp_path / "new" / "deeper"], "Choose another")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_named_with_the_advice(tmp_path):
    (tmp_path / "file").write_text("x")
    folder = tmp_path / "file" / "caches"
    with pytest.raises(OutputError) as caught:
        check_writable([tmp_path, folder], "Choose another --cache_dir")
    assert str(caught.value) == f"{folder}: files cannot be written there. Choose another --cache_dir."
