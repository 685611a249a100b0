"""Graphs: what they take is read from them, and what is wrong with them is said before any picture is decoded."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tiny_taggers import CSV_ROWS, RED, SIDE, WHITE, make_pictures, make_tagger, write_table

from library.errors import CheckpointError
from library.preparing.tagging.labels import read_labels
from library.preparing.tagging.model_files import TaggerFiles, TaggerPlace, find_tagger
from library.preparing.tagging.onnx_model import load_tagger, tell_device
from library.preparing.tagging.pixels import PixelForm, numbers, read_pixels, squared


def loaded(folder):
    files = find_tagger(TaggerPlace("owner/name", folder, False))
    return load_tagger(files, read_labels(files.table))


def scores(folder, pictures, step=None):
    tagger = loaded(folder)
    pixels = [read_pixels(path, tagger.form) for path in sorted(pictures.iterdir())]
    step = step or len(pixels)
    return np.concatenate([tagger.scores(pixels[start : start + step]) for start in range(0, len(pixels), step)])


def test_a_graph_with_channels_last_takes_bgr_of_its_own_size(tmp_path):
    assert loaded(make_tagger(tmp_path)).form == PixelForm(SIDE, is_channels_first=False)


def test_logits_and_chances_give_the_same_scores(tmp_path):
    pictures = make_pictures(tmp_path / "pictures")
    chances = scores(make_tagger(tmp_path / "csv"), pictures)
    logits = scores(make_tagger(tmp_path / "json", "json"), pictures)
    assert np.allclose(chances, logits[:, : len(CSV_ROWS)], atol=1e-5)
    assert logits.min() >= 0 and logits.max() <= 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_of_a_fixed_batch_gives_the_scores_of_any_batch(tmp_path, batch):
    pictures = make_pictures(tmp_path / "pictures")
    fixed = scores(make_tagger(tmp_path / "fixed", batch=batch), pictures)
    assert np.allclose(fixed, scores(make_tagger(tmp_path / "any"), pictures), atol=1e-6)


def test_scores_do_not_depend_on_the_batch(tmp_path):
    pictures, folder = make_pictures(tmp_path / "pictures"), make_tagger(tmp_path / "tagger")
    assert np.allclose(scores(folder, pictures), scores(folder, pictures, step=1), atol=1e-6)


def test_half_precision_is_what_the_graph_gets_if_it_asks_for_it(tmp_path):
    folder = make_tagger(tmp_path / "tagger")
    graph = onnx.load(folder / "model.onnx")
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    graph.graph.node[0].input[0] = "wide"
    graph.graph.node.insert(0, helper.make_node("Cast", ["input"], ["wide"], to=TensorProto.FLOAT))
    onnx.save(graph, folder / "model.onnx")
    assert loaded(folder).form.dtype is np.float16
    loaded(folder).check()


def test_pictures_stand_in_the_middle_of_a_white_square():
    pixels = squared(Image.new("RGB", (40, 20), RED), 20)
    assert (pixels[:5] == WHITE).all() and (pixels[-5:] == WHITE).all()
    assert (pixels[5:15] == RED).all()


def test_small_pictures_are_enlarged_and_long_strips_take_little_memory():
    assert squared(Image.new("RGB", (3, 3), RED), 16).shape == (16, 16, 3)
    assert squared(Image.new("RGB", (30000, 2), RED), 16).shape == (16, 16, 3)


def test_numbers_of_both_kinds():
    red = np.full((2, 2, 3), RED, np.uint8)
    assert numbers(red, PixelForm(2, False))[0, 0].tolist() == [0, 0, 255]
    assert numbers(red, PixelForm(2, True))[:, 0, 0].tolist() == [-1, -1, 1]


def refusal(folder):
    with pytest.raises(CheckpointError) as error:
        loaded(folder).check()
    return str(error.value)


def test_a_table_of_another_model_is_refused(tmp_path):
    make_tagger(tmp_path)
    write_table(tmp_path, "csv", CSV_ROWS[:-1])
    assert "gives 7 scores a picture, but its table has 6 tags" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no graph", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    make_tagger(tmp_path)
    (tmp_path / "model.onnx").write_bytes(content)
    assert str(tmp_path / "model.onnx") in refusal(tmp_path)


def test_a_truncated_graph_is_refused(tmp_path):
    path = make_tagger(tmp_path) / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be loaded as an ONNX graph" in refusal(tmp_path)


def test_a_graph_of_something_else_is_refused(tmp_path):
    make_tagger(tmp_path)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 7])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "model.onnx"
    )
    assert "is no tagger: it takes tensor(float) [1, 7]" in refusal(tmp_path)


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    path = make_tagger(tmp_path) / "model.onnx"
    graph = onnx.load(path)
    weights = next(item for item in graph.graph.initializer if item.name == "offsets")
    weights.CopyFrom(onnx.numpy_helper.from_array(np.full(7, np.nan, np.float32), "offsets"))
    onnx.save(graph, path)
    assert "not finite" in refusal(tmp_path)


def test_models_of_the_hub_are_kept_below_model_dir(tmp_path):
    folder = make_tagger(tmp_path / "owner_name")
    files = TaggerFiles(folder / "model.onnx", folder / "selected_tags.csv")
    assert find_tagger(TaggerPlace("owner/name", tmp_path, True)) == files


def test_a_folder_in_a_repository_is_found_below_model_dir(tmp_path):
    folder = make_tagger(tmp_path / "owner_name_v1" / "v1", "json")
    assert find_tagger(TaggerPlace("owner/name/v1", tmp_path, True)).table == folder / "tag_mapping.json"


def test_repo_id_may_be_a_folder(tmp_path):
    make_tagger(tmp_path / "mine")
    assert find_tagger(TaggerPlace(str(tmp_path / "mine"), tmp_path, True)).model == tmp_path / "mine" / "model.onnx"


def test_files_in_model_dir_itself_are_of_another_model_where_one_is_named(tmp_path):
    make_tagger(tmp_path)
    with pytest.raises(CheckpointError, match="owner/name is not in .*, and the hub cannot be reached"):
        find_tagger(TaggerPlace("owner/name", tmp_path, True))


def test_a_folder_with_one_of_the_two_files_is_refused(tmp_path):
    (make_tagger(tmp_path) / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match="has no model.onnx"):
        find_tagger(TaggerPlace("owner/name", tmp_path, False))


def test_it_is_told_what_to_install_where_the_gpu_is_not_used(caplog):
    tell_device("CPUExecutionProvider", is_gpu_expected=True)
    assert "CUDA part of onnxruntime does not load" in caplog.text and "onnxruntime-gpu" in caplog.text
