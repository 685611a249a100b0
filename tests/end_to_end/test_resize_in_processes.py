"""tools/resize_images_to_resolution.py in several processes."""

from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "resize_images_to_resolution.py"


def test_two_processes_share_the_pictures_and_the_first_tells_of_all(warm_python, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGBA", (64, 64), (0, 0, 0, 100)).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text("a caption", encoding="utf-8")
    (tmp_path / "photos" / "bad.png").write_bytes(b"")
    arguments = [tmp_path / "photos", tmp_path / "out", "--max_resolution=32x32", "--copy_associated_files"]
    run = warm_python.start([SCRIPT, *arguments], tmp_path / "printed.log", ranks=2)
    codes, told = warm_python.wait(run), run.printed()
    assert codes[0] == 2, told  # the launcher ends the other one
    assert told.count("resized pictures: wrote 4, kept 0") == 1 and "bad.png is empty" in told
    assert told.count("captions and other files: copied 4, kept 0") == 1
    assert told.count("4 pictures can be transparent and became PNG") == 1
    assert len(list((tmp_path / "out").iterdir())) == 8
