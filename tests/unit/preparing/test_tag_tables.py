"""Tables of tags: two kinds, and what is wrong with them."""

import json

import pytest
from tiny_taggers import CSV_ROWS, JSON_ROWS, write_table

from library.errors import CheckpointError
from library.preparing.tagging.labels import Label, read_labels


def csv_table(tmp_path, text):
    path = tmp_path / "selected_tags.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_of_categories_have_names(tmp_path):
    path = csv_table(tmp_path, "tag_id,name,category,count\n1,a,9,1\n2,b,0,1\n3,c,4,1\n4,d,3,1\n5,e,1,1\n6,f,5,1\n")
    kinds = ["rating", "general", "character", "copyright", "artist", "meta"]
    assert [label.category for label in read_labels(path)] == kinds


def test_names_with_commas_and_quotes_are_read_whole(tmp_path):
    path = csv_table(tmp_path, 'tag_id,name,category,count\n1,"a,""b""",0,1\n')
    assert read_labels(path) == (Label('a,"b"', "general"),)


def test_the_two_forms_of_a_mapping_say_the_same(tmp_path):
    write_table(tmp_path, "json", JSON_ROWS)
    other = {
        "idx_to_tag": {str(index): name for index, (name, _, _) in enumerate(JSON_ROWS)},
        "tag_to_category": {name: category for name, category, _ in JSON_ROWS},
    }
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    labels = read_labels(tmp_path / "tag_mapping.json")
    assert labels == read_labels(tmp_path / "other.json")
    assert labels[0] == Label("general", "rating")


def test_indices_of_a_mapping_count_not_their_order(tmp_path):
    path = tmp_path / "tag_mapping.json"
    path.write_text('{"1": {"tag": "b", "category": "General"}, "0": {"tag": "a", "category": "Meta"}}')
    assert [label.name for label in read_labels(path)] == ["a", "b"]


def test_unknown_categories_are_general_and_told(tmp_path, caplog):
    path = csv_table(tmp_path, "tag_id,name,category,count\n1,a,7,1\n")
    assert read_labels(path) == (Label("a", "general"),)
    assert "unknown category '7'" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("selected_tags.csv", "id,tag\n1,a\n", "no column name and no column category"),
        ("selected_tags.csv", "", "no column name"),
        ("selected_tags.csv", "name,category\n", "no tags"),
        ("selected_tags.csv", "name,category\na,0\nb\n", "line 3"),
        ("selected_tags.csv", "name,category\na,x\n", "number as category"),
        ("tag_mapping.json", "{", "is no JSON"),
        ("tag_mapping.json", "[1]", "no table of tags"),
        ("tag_mapping.json", '{"0": {"tag": "a"}}', "no table of tags"),
        ("tag_mapping.json", '{"1": {"tag": "a", "category": "General"}}', "no tag of index 0"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=reason) as error:
        read_labels(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_real_header_is_read(tmp_path):
    write_table(tmp_path, "csv", CSV_ROWS)
    assert read_labels(tmp_path / "selected_tags.csv")[-1] == Label("ruby_(gems)", "character")
