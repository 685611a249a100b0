"""Captions and tags are mended by rules that say no more than the picture shows, and do nothing the second time."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.clean_captions_and_tags import main
from library.preparing.metadata.clean_run import clean_entries
from library.preparing.metadata.cleaning_rules import clean_caption, clean_tags, common_tags, is_rating


@pytest.mark.parametrize(
    ("tags", "cleaned"),
    [
        ("long_hair,looking_at_viewer", "long hair, looking at viewer"),
        ("^_^, o_o, (o)_(o), 6_9, >_<", "^_^, o_o, (o)_(o), 6_9, >_<"),
        ("long_hair, long hair", "long hair"),
        ("smile, rating:safe", "smile"),
        ("rating_explicit, smile, rating:q", "smile"),
        ("shirt, white_shirt, collared white shirt", "collared white shirt"),
        ("hair ornament, flower hair ornament, hair", "flower hair ornament, hair"),
        ("hat, no hat", "hat, no hat"),
        ("cat, black catsuit", "cat, black catsuit"),
        ("{red_hat, b|blue_hat, b}", "{red_hat, b|blue_hat, b}"),
        ("1girl, blue_eyes, red_eyes, long hair", "1girl, blue eyes, red eyes, long hair"),
        ("2girls, blue eyes, smile", "2girls, blue eyes, smile"),
        ("2girls, blue eyes, closed eyes, smile", "2girls, smile"),
        ("multiple_boys, blonde hair, light_brown_hair, hat", "multiple boys, hat"),
        ("1girl, 1boy, long hair, short hair, black hair", "1girl, 1boy, black hair"),
        ("6+girls, sleeveless, long_sleeves, hat", "6+girls, hat"),
        ("2girls, ponytail, twin_braids, bob_cut", "2girls, bob cut"),
        ("2girls, long hair, blue hair", "2girls, long hair, blue hair"),
        ("", ""),
    ],
)
def test_tags(tags, cleaned):
    assert clean_tags(tags, num_kept=0).text == cleaned


@pytest.mark.parametrize(
    ("tags", "num_kept", "cleaned"),
    [
        ("sks, photo of sks", 1, "sks, photo of sks"),
        ("man, ohwx man, hat, red hat", 1, "man, ohwx man, red hat"),
        ("man, ohwx man, hat, red hat", 3, "man, ohwx man, hat, red hat"),
        ("my_trigger, looking_back", 1, "my_trigger, looking back"),
        ("sensitive, rating_safe, my_trigger", 1, "my_trigger"),
        ("long hair, 2girls, short hair", 1, "long hair, 2girls"),
        ("multiple_girls, long hair, short hair", 1, "multiple_girls"),
        ("white_shirt, shirt, white_shirt", 1, "white shirt"),
    ],
)
def test_the_first_tags_stay_as_they_are(tags, num_kept, cleaned):
    common = common_tags([tags], num_kept)
    assert clean_tags(tags, num_kept=num_kept, common=common).text == cleaned


def test_one_tag_is_spelled_alike_first_and_further_behind():
    entries = {"a": {"tags": "long_hair, hat"}, "b": {"tags": "no_humans, long_hair"}}
    cleaned, _ = clean_entries(entries, 1)
    assert [entry["tags"] for entry in cleaned.values()] == ["long hair, hat", "no_humans, long hair"]


@pytest.mark.parametrize(
    ("tags", "cleaned"),
    [
        ("sensitive, 1girl, explicit", "1girl"),
        ("rating_safe, explicit", ""),
        ("1girl, general, hat", "1girl, general, hat"),
        ("2girls, General, blue eyes, red eyes", "2girls"),
    ],
)
def test_bare_ratings_go_where_taggers_write_them(tags, cleaned):
    assert clean_tags(tags).text == cleaned


def test_what_each_rule_did_is_counted():
    tags = "general, 2girls, red_hat, hat, red_eyes, blue eyes, rating:q"
    assert clean_tags(tags).counts == {"ratings": 2, "underscores": 2, "contradictions": 2, "repeats": 1}


@pytest.mark.parametrize("tag", ["rating", "rating system", "general", "rating stars"])
def test_tags_that_only_look_like_ratings_stay(tag):
    assert not is_rating(tag)


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("an anime girl with a hat", "a girl with a hat"),
        ("An anime cartoon character", "A character"),
        ("a cartoon woman and cartoon men", "a woman and men"),
        ("arafed woman in an arafed araffe elephant suit", "woman in an elephant suit"),
        ("a lady and two ladies", "a woman and two women"),
        ("Lady Gaga, anime style, a ladybird", "Lady Gaga, anime style, a ladybird"),
        ("girl girl with anime anime face", "girl with anime face"),
        ("an anime girl\nan anime boy", "a girl\na boy"),
        ("a young woman, two people", "a young woman, two people"),
        ("it is very very good that that is so", "it is very very good that that is so"),
    ],
)
def test_captions(caption, cleaned):
    assert clean_caption(caption) == cleaned


TAGS = (
    *(
        "2girls",
        "1boy",
        "long_hair",
        "short hair",
        "hair",
        "blue eyes",
        "red_eyes",
        "eyes",
        "^_^",
        "white shirt",
        "shirt",
    ),
    *("rating:safe", "no shirt", "twin_braids", "ahoge", "sleeveless", "wide sleeves", "explicit", "general"),
)
WORDS = ("a", "an", "anime", "cartoon", "girl", "woman", "lady", "arafed", "araffe", "owl", "character", "and", "\n")


@given(st.lists(st.lists(st.sampled_from(TAGS)), min_size=1, max_size=2), st.integers(0, 2))
def test_cleaning_tags_again_changes_nothing(lists, num_kept):
    entries = {str(number): {"tags": ",".join(tags)} for number, tags in enumerate(lists)}
    cleaned, _ = clean_entries(entries, num_kept)
    again, counts = clean_entries(cleaned, num_kept)
    assert again == cleaned
    assert not counts.total()


@given(st.lists(st.sampled_from(WORDS)))
def test_cleaning_a_caption_again_changes_nothing(words):
    cleaned = clean_caption(" ".join(words))
    assert clean_caption(cleaned) == cleaned


ENTRIES = {
    "a.png": {"caption": "an anime girl", "tags": "long_hair, rating:safe", "image_size": [4, 2], "mine": "as_it_is"},
    "b.png": {"tags": None, "caption": "two"},
    "c.png": {"tags": "rating:safe"},
}
CLEANED = {
    "a.png": {"caption": "a girl", "tags": "long_hair", "image_size": [4, 2], "mine": "as_it_is"},
    "b.png": {"tags": None, "caption": "two"},
    "c.png": {"tags": ""},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.json").write_text(json.dumps(ENTRIES))
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["in.json", "out.json"], ["in.json", "in.json"], ["pics", "in.json", "out.json"]]
)
def test_texts_are_cleaned_and_everything_else_stays(place, arguments, capsys):
    assert main(arguments) == 0
    assert json.loads((place / arguments[-1]).read_text()) == CLEANED
    told = capsys.readouterr().err
    assert "underscores became spaces in 0; dropped 2 ratings, 0 of hair" in told
    assert "3 entries (cleaned the tags of 2, the captions of 1)" in told
    assert "of whose tags nothing is left: 1 (c.png)" in told
    assert ("The folder pics is not needed" in told) == (len(arguments) == 3)


def test_the_file_that_is_read_stays_as_it_is(place):
    assert main(["in.json", "out.jsonl"]) == 0
    assert json.loads((place / "in.json").read_text()) == ENTRIES


def test_debug_tells_each_change(place, capsys):
    assert main(["in.json", "out.json", "--debug"]) == 0
    told = capsys.readouterr().err
    assert "a.png: caption: 'an anime girl' -> 'a girl'" in told
    assert "a.png: tags: 'long_hair, rating:safe' -> 'long_hair'" in told
    assert (
        "first tags that keep their underscores, as trigger words: 1 (long_hair); --keep_tokens 0 changes them." in told
    )
    assert "b.png: " not in told


def test_without_first_tags_to_keep_all_are_cleaned(place, capsys):
    assert main(["in.json", "out.json", "--keep_tokens", "0"]) == 0
    assert json.loads((place / "out.json").read_text())["a.png"]["tags"] == "long hair"
    assert "keep their underscores" not in capsys.readouterr().err


def test_a_correction_in_the_file_to_write_only_goes_with_overwrite(place, capsys):
    assert main(["in.json", "out.json"]) == 0
    corrected = CLEANED | {"b.png": {"tags": None, "caption": "HAND CORRECTED"}}
    (place / "out.json").write_text(json.dumps(corrected))
    assert main(["in.json", "out.json"]) == 2
    assert json.loads((place / "out.json").read_text()) == corrected
    assert main(["in.json", "out.json", "--overwrite"]) == 0
    assert json.loads((place / "out.json").read_text()) == CLEANED


def test_tags_with_wildcards_are_told(place, capsys):
    (place / "in.json").write_text('{"a.png": {"tags": "{a_b|c}"}}')
    assert main(["in.json", "out.json"]) == 0
    assert "left as they are: 1 (a.png)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.json"], "OUT_JSON is needed"),
        (["in.json", "out"], "OUT_JSON must end in .json or .jsonl"),
        (["in.json", "out.json", "more.json"], "IN_JSON and OUT_JSON are all that is needed"),
        (["gone.json", "out.json"], "IN_JSON: gone.json does not exist"),
        (["in.json", "no/out.json"], "the folder no does not exist"),
        (["in.json", "other.json"], "other.json is there already and has what the new one would not have"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(place, capsys, arguments, message):
    (place / "other.json").write_text('{"z.png": {"caption": "z"}}')
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (place / "out.json").exists()
