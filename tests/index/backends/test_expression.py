import ast

import pytest

from fanoise.errors import InputError
from index.backends.expression import NEVER, filter_expression, is_group, literal
from index.backends.folding import MARK
from index.backends.layout import Field, Layout

LAYOUT = Layout(
    fields=(
        Field("colour", "text", "f_colour", "f_colour", "c_colour"),
        Field("size", "text", "f_size", "f_size", "f_size", "n_size"),
        Field("price", "int", "f_price", "f_price", number="f_price"),
        Field("weight", "float", "f_weight", "f_weight", number="f_weight"),
        Field("sale", "bool", "f_sale", "f_sale"),
        Field("tags", "list", 'other["v5"]', 'other["t5"]', 'other["c5"]'),
        Field("years", "list", 'other["v6"]', 'other["t6"]', is_numeric=True),
        Field("far", "text", 'other["v7"]', 'other["v7"]', 'other["c7"]'),
        Field("made", "time", 'other["v8"]', 'other["t8"]', 'other["c8"]', 'other["t8"]', zone="Europe/Berlin"),
    ),
    lengths={},
)


@pytest.mark.parametrize(
    ("where", "expression"),
    [
        (None, ""),
        ({"colour": "red"}, '(f_colour == "red")'),
        ({"colour": {"in": ["red", "blue"]}}, '(f_colour in ["red", "blue"])'),
        ({"colour": {"not": "red"}}, '(f_colour is not null and f_colour != "" and not (f_colour == "red"))'),
        ({"colour": {"min": "a"}}, '(f_colour is not null and f_colour != "" and f_colour >= "a")'),
        ({"colour": {"contains": "ReD"}}, '(f_colour is not null and f_colour != "" and c_colour like "%red%")'),
        ({"size": {"max": "40"}}, '(f_size is not null and f_size != "" and n_size <= 40.0)'),
        ({"price": "20.0"}, "(f_price == 20)"),
        ({"price": {"min": 1.5, "max": 9.5}}, "(f_price is not null and f_price >= 2 and f_price <= 9)"),
        ({"price": {"in": ["x", 2**63]}}, f"({NEVER})"),
        ({"price": {"not": "x"}}, "(f_price is not null)"),
        ({"price": -3, "sale": "TRUE"}, "(f_price == -3) and (f_sale == true)"),
        ({"price": [{"min": 1}, {"not": 3}]}, "(f_price is not null and f_price >= 1) and "
         "(f_price is not null and not (f_price == 3))"),
        ({"weight": 2}, "(f_weight == 2.0)"),
        ({"tags": "b%"}, f'(other["t5"] like "%{MARK}b\ufdd2{MARK}%")'),
        ({"years": "1999.0"}, f'(other["t6"] like "%{MARK}1999{MARK}%")'),
        ({"far": "x"}, '(other["v7"] == "x")'),
        ({"far": {"not": "x"}}, '(exists other["v7"] and other["v7"] != "" and not (other["v7"] == "x"))'),
        ({"colour": ""}, f"({NEVER})"),
        ({"colour": "TRUE"}, '(f_colour == "TRUE" or c_colour == "true")'),
        ({"colour": "é"}, '(f_colour in ["\u00e9", "e\u0301"])'),
        ({"tags": "e\u0301"}, f'(other["t5"] like "%{MARK}e\u0301{MARK}%" or other["t5"] like "%{MARK}\u00e9{MARK}%")'),
        ({"size": "40.0"}, '(f_size == "40.0" or n_size == 40.0 and not (f_size like "0%"))'),
        ({"size": "-.5"}, '(f_size == "-.5" or n_size == -0.5 and not (f_size like "-00%"))'),
        ({"size": {"in": ["007", 2**53]}}, f'(f_size in ["007", "{2**53}"])'),
        ({"size": {"not": 40}}, '(f_size is not null and f_size != "" and not (f_size == "40") and '
         '(n_size is null or not (n_size == 40.0 and not (f_size like "0%"))))'),
        ({"made": "1970-01-01T01:00"}, '(other["t8"] == 0)'),
        ({"made": {"min": "1970-01-01T00:00:01Z"}}, '(exists other["t8"] and other["t8"] >= 1000000)'),
        ({"made": "soon"}, f"({NEVER})"),
    ],
)  # fmt: skip
def test_conditions_become_expressions(where, expression):
    assert filter_expression(where, LAYOUT) == expression


def test_a_group_is_its_value_to_the_letter():
    size, made, weight, sale = (LAYOUT.field(name) for name in ("size", "made", "weight", "sale"))
    assert is_group(size, ["10", "10.0"]) == 'f_size in ["10", "10.0"]'
    assert is_group(made, [7]) == 'other["t8"] == 7'
    assert is_group(weight, [2]) == "f_weight == 2.0"
    assert is_group(sale, [True]) == "f_sale == true"


@pytest.mark.parametrize(
    "text",
    [
        'a" or 1 == 1 or f_colour == "',
        "it's",
        "back\\slash",
        "ends in \\",
        '\\" or true',
        "\\u0022 or true",
        "line\nbreak\r\ttab",
        "北京 🍎 \u2028",
        "\0",
        "{v}",
    ],
)
def test_a_literal_is_its_text_and_nothing_else(text):
    """Python's literals are the oracle: each escape that is used means there what it means in Go and Milvus Lite."""
    written = literal(text)
    assert ast.literal_eval(written.replace("\0", "\\0")) == text
    assert "\n" not in written and "\r" not in written
    assert written[0] == written[-1] == '"'


def test_lone_surrogates_can_be_sent():
    assert literal("\ud800") == '"\\\\ud800"'
    literal("\ud800").encode()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"color": "red"}, "where: unknown field 'color'; the fields of this index are: colour, size"),
        ({"price": {"min": "cheap"}}, "where price>=cheap: the field 'price' holds numbers"),
        ({"sale": {"max": 1}}, "flags, which have no order"),
        ({"made": {"min": "soon"}}, "where made>=soon: the field 'made' holds times; give one, such as 2026-01-31"),
        ({"tags": {"min": "a"}}, "lists, whose members Milvus cannot order"),
        ({"price": {"contains": "1"}}, "numbers, and only text contains text"),
        ({"years": {"contains": "1"}}, "lists, and only text contains text"),
    ],
)
def test_senseless_conditions_are_refused(where, message):
    with pytest.raises(InputError, match=message):
        filter_expression(where, LAYOUT)
