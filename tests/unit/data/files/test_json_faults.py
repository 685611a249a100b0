"""Places and reasons of faults in JSON."""

import json

import pytest

from library.data.files.json_faults import describe_fault


def fault_of(text):
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    return describe_fault(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1,}', "line 1, column 8"),
        ('{"a": [1, 2 , ]}', "line 1, column 13"),
        ('{\n  "a": 1,\n}', "line 2, column 9"),
    ],
)
def test_a_comma_behind_the_last_item_is_named_where_it_stands(text, place):
    assert fault_of(text) == (place, "trailing comma behind the last item")


@pytest.mark.parametrize("sign", [",", "}"])
def test_the_comma_is_found_whether_it_or_the_bracket_is_reported(sign):
    text = '{"a": 1, }'
    error = json.JSONDecodeError("as Python says it", text, text.index(sign))
    assert describe_fault(error) == ("line 1, column 8", "trailing comma behind the last item")


def test_other_faults_keep_their_place_and_reason():
    assert fault_of('{\n "a": x}') == ("line 2, column 7", "Expecting value")
    assert fault_of("") == ("line 1, column 1", "Expecting value")
