"""Small taggers as real ONNX graphs with their tables: the mean colour of a picture decides about its tags.

    folder = make_tagger(tmp_path / "tagger")              # selected_tags.csv, BGR 0..255, chances
    folder = make_tagger(tmp_path / "tagger", "json")      # tag_mapping.json, BGR -1..1, logits

A red square is a red_hat and ruby_(gems), a green one a green_tree, a blue one blue_sky; white ones make ^_^.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIDE = 16
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
COLOURS = {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}

RULES = {  # how much red, green and blue of 0..255 say for a tag, and what is added
    "red": (0.05, -0.025, -0.025, -3.0),
    "green": (-0.025, 0.05, -0.025, -3.0),
    "blue": (-0.025, -0.025, 0.05, -3.0),
    "white": (0.02, 0.02, 0.02, -9.0),
    "never": (0.0, 0.0, 0.0, -9.0),
    "always": (0.0, 0.0, 0.0, 1.0),
}
Row = tuple[str, str, str]
CSV_ROWS: tuple[Row, ...] = (  # name, category, rule
    ("general", "9", "always"),
    ("sensitive", "9", "red"),
    ("red_hat", "0", "red"),
    ("green_tree", "0", "green"),
    ("blue_sky", "0", "blue"),
    ("^_^", "0", "white"),
    ("ruby_(gems)", "4", "red"),
)
JSON_ROWS: tuple[Row, ...] = (
    *((name, {"9": "Rating", "0": "General", "4": "Character"}[number], rule) for name, number, rule in CSV_ROWS),
    ("gems", "Copyright", "red"),
    ("painter", "Artist", "red"),
    ("highres", "Meta", "red"),
    ("some_model", "Model", "red"),
    ("best_quality", "Quality", "always"),
    ("worst_quality", "Quality", "never"),
)


def make_tagger(
    folder: Path, kind: str = "csv", *, rows: tuple[Row, ...] | None = None, batch: int | None = None
) -> Path:
    """Write a tagger. `batch` is the number of pictures that the graph takes; None for any."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows or (CSV_ROWS if kind == "csv" else JSON_ROWS)
    write_table(folder, kind, rows)
    onnx.save(make_graph(rows, batch=batch, is_channels_first=kind == "json"), folder / "model.onnx")
    return folder


def write_table(folder: Path, kind: str, rows: tuple[Row, ...]) -> None:
    if kind == "json":
        table = {str(index): {"tag": name, "category": category} for index, (name, category, _) in enumerate(rows)}
        (folder / "tag_mapping.json").write_text(json.dumps(table), encoding="utf-8")
        return
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("tag_id", "name", "category", "count"))
        writer.writerows((index, name, category, 100) for index, (name, category, _) in enumerate(rows))


def make_graph(rows: tuple[Row, ...], *, batch: int | None, is_channels_first: bool) -> onnx.ModelProto:
    """Mean colour, a linear layer, and with channels last a sigmoid."""
    weights = np.array([RULES[rule][:3] for _, _, rule in rows], np.float32).T[::-1]
    offsets = np.array([RULES[rule][3] for _, _, rule in rows], np.float32)
    number = batch if batch is not None else "N"
    if is_channels_first:
        offsets = offsets + 127.5 * weights.sum(0)
        weights = weights * 127.5
        shape, axes = [number, 3, SIDE, SIDE], [2, 3]
    else:
        shape, axes = [number, SIDE, SIDE, 3], [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "offsets"], ["logits"]),
    ]
    if not is_channels_first:
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["chances"]))
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [number, len(rows)])],
        [
            numpy_helper.from_array(np.ascontiguousarray(weights, np.float32), "weights"),
            numpy_helper.from_array(offsets.astype(np.float32), "offsets"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def make_pictures(folder: Path, **colours: tuple[int, int, int]) -> Path:
    """Squares of one colour, {stem: colour}; without any one of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, colour in (colours or COLOURS).items():
        Image.new("RGB", (20, 20), colour).save(folder / f"{stem}.png")
    return folder
