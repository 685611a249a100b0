"""One function over many files: order, threads where the drive is slow, and what goes wrong."""

import threading
import time
from pathlib import Path

import pytest

from library.data.files.file_threads import CHUNK, WORTH_A_BAR, map_files

PATHS = [Path(str(number)) for number in range(5 * CHUNK + 3)]


def number_and_thread(path):
    return int(path.name), threading.get_ident()


@pytest.mark.parametrize("num_threads", [None, 1, 3])
@pytest.mark.parametrize("length", [0, 1, CHUNK, CHUNK + 1, len(PATHS)])
def test_results_are_in_order(num_threads, length):
    results = map_files(number_and_thread, PATHS[:length], num_threads=num_threads)
    assert [number for number, _ in results] == list(range(length))


def test_threads_are_used_where_files_are_waited_for():
    def wait(path):
        time.sleep(0.001)
        return threading.get_ident()

    assert len(set(map_files(wait, PATHS))) > 1
    assert len(set(map_files(wait, PATHS[: CHUNK // 2]))) == 1


def test_the_bar_changes_nothing():
    paths = [Path(str(number)) for number in range(WORTH_A_BAR)]
    assert map_files(lambda path: path, paths, title="looking") == paths


@pytest.mark.parametrize("num_threads", [None, 1, 3])
def test_an_exception_ends_it(num_threads):
    def fail(path):
        if path.name == "100":
            raise ValueError(path.name)

    with pytest.raises(ValueError, match="100"):
        map_files(fail, PATHS, num_threads=num_threads)
