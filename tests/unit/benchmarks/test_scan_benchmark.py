"""The benchmark of scanning measures what it says: all pictures are found, and the second time from the index."""

from benchmarks.scan import make_pictures, measure


def test_pictures_are_made_found_and_planned(tmp_path):
    make_pictures(tmp_path / "pictures", 24)
    first = measure(tmp_path / "pictures", tmp_path / "index", "plan")
    epochs = measure(tmp_path / "pictures", tmp_path / "index", "epochs")
    assert first["pictures"] == epochs["pictures"] == 24
    assert epochs["memory after epochs"] >= epochs["memory before"] > 0
    assert len(epochs["epochs"]) == 2
    assert len(list((tmp_path / "index").iterdir())) == 1
