from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from softcft.data.columns import doubt_places, explain_unknown, find_columns, read_column, translate
from softcft.data.entries import Entry, read_entry
from softcft.data.tables import as_text
from softcft.graph import CausalGraph, Variable
from tests.data.picture_files import table

GRAPH = CausalGraph(
    [
        {"name": "age", "kind": "continuous", "low": 0, "high": 100},
        {"name": "sex", "kind": "binary", "categories": ["male", "female"]},
        {"name": "grade", "kind": "categorical", "categories": ["1", "2", "3"]},
    ]
)
SEX = GRAPH["sex"]


def full(**columns: Any) -> Dataset:
    return table(**{"age": [1, 2, 3, 4], "sex": ["male"] * 4, "grade": ["1", "2", "3", "1"], **columns})


# ---- values -------------------------------------------------------------------------------------------------------


def test_a_table_that_agrees_with_the_graph() -> None:
    rows = translate(full(patient=["a", "b", "c", "d"], other=[0] * 4), GRAPH, keep=["patient", "age", "nothing"])
    assert rows.column_names == ["image", "patient", "age", "sex", "grade"]
    assert rows["age"][:] == [1.0, 2.0, 3.0, 4.0]
    assert rows["sex"][:] == ["male"] * 4
    assert rows["patient"][:] == ["a", "b", "c", "d"]


def test_other_names_and_values() -> None:
    rows = table(years=["1", "2.5", "", "-9"], gender=[0, 1, 9, None], grade=[1, 2, 3, 3]).rename_column(
        "image", "scan"
    )
    columns = {
        "age": {"column": "years", "values": {-9: None}},
        "sex": {"column": "gender", "values": {0: "female", 1: "male", 9: None}},
        "image": "scan",
    }
    translated = translate(rows, GRAPH, columns)
    assert translated["age"][:] == [1.0, 2.5, None, None]
    assert translated["sex"][:] == ["female", "male", None, None]
    assert translated["grade"][:] == ["1", "2", "3", "3"]
    assert np.asarray(translated[3]["image"])[0, 0] == 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["male", None, "", "female"], ["male", None, None, "female"]),
        ([0, 1, 0, None], ["male", "female", "male", None]),  # positions
        ([0.0, 1.0, float("nan"), 1.0], ["male", "female", None, "female"]),  # as a column of integers with a gap is
        ([False, True, True, None], ["male", "female", "female", None]),
    ],
    ids=["names", "integers", "floats", "bools"],
)
def test_binary_values(values: list[Any], expected: list[Any]) -> None:
    understood, wrong = read_column(Dataset.from_dict({"sex": values}), SEX, Entry("sex"))
    assert (understood, dict(wrong)) == (expected, {})


@pytest.mark.parametrize(
    "categories",
    [("yes", "no"), ("Present", "absent"), ("mass", "no_finding"), ("ill", "healthy"), ("a", "without a")],
)
@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0, None], [False, True]])
def test_numbers_are_no_positions_of_yes_and_no(categories: tuple[str, str], values: list[Any]) -> None:
    rows, variable = Dataset.from_dict({"x": values}), Variable(name="x", kind="binary", categories=categories)
    assert set(read_column(rows, variable, Entry("x"))[1]) == {as_text(value) for value in values if value is not None}
    turned = Variable(name="x", kind="binary", categories=categories[::-1])
    assert read_column(rows, turned, Entry("x"))[0][:2] == list(turned.categories)


@pytest.mark.parametrize("categories", [("true", "false"), ("FALSE", "TRUE"), ("True", "False")])
def test_truth_values_are_categories_of_that_name(categories: tuple[str, str]) -> None:
    variable = Variable(name="x", kind="binary", categories=categories)
    understood, _ = read_column(Dataset.from_dict({"x": [True, False]}), variable, Entry("x"))
    assert [str(category).lower() for category in understood] == ["true", "false"]


@pytest.mark.parametrize(("column", "is_read"), [("Male", False), ("is_male", False), ("female", True), ("x", True)])
def test_a_column_called_as_the_first_category_has_no_places(column: str, is_read: bool) -> None:
    rows = Dataset.from_dict({column: [0, 1]})
    assert read_column(rows, SEX, Entry(column))[0] == (["male", "female"] if is_read else [None, None])


@pytest.mark.parametrize(
    ("column", "is_read"), [("left", False), ("Is_Both", False), ("site", True), ("left_right", True)]
)
def test_a_column_for_one_of_several_categories_has_no_places(column: str, is_read: bool) -> None:
    rows = Dataset.from_dict({column: [0, 1]})
    assert read_column(rows, SITE, Entry(column))[0] == (["left", "right"] if is_read else [None, None])


def test_types_of_tables_are_read_as_texts_and_numbers() -> None:
    days = [datetime(1950, 3, 4), datetime(1951, 3, 4)]
    rows = Dataset.from_dict({"age": [Decimal("4.5"), None], "day": days, "length": [timedelta(days=3), timedelta(1)]})
    assert read_column(rows, GRAPH["age"], Entry("age"))[0] == [4.5, None]
    for column in ("day", "length"):
        assert read_column(rows, GRAPH["age"], Entry(column))[1].total() == 2
    assert "dates" in explain_unknown(GRAPH["age"], "day", read_column(rows, GRAPH["age"], Entry("day"))[1], [])


def test_all_splits_decide_what_numbers_and_separators_mean() -> None:
    splits = {"train": Dataset.from_dict({"sex": [0, 1, 9]}), "test": Dataset.from_dict({"sex": [0, 1]})}
    assert read_column(splits["test"], SEX, Entry("sex"), splits)[0] == [None, None]
    parts = {"train": ["Mass|Nodule, left"], "test": ["Nodule, left", "mass"]}
    splits = {split: Dataset.from_dict({"x": cells}) for split, cells in parts.items()}
    mass = Variable(name="x", kind="binary", categories=("no", "yes"))
    assert read_column(splits["test"], mass, Entry("x", contains=["Nodule, left"]), splits)[0] == ["yes", "no"]
    assert read_column(splits["test"], mass, Entry("x", contains=["MASS"]), splits)[0] == ["no", "yes"]


def test_class_labels_are_read_by_their_names() -> None:
    rows = Dataset.from_dict(
        {"sex": [1, 0, -1, None]}, features=Features({"sex": ClassLabel(names=["female", "male"])})
    )
    assert read_column(rows, SEX, Entry("sex"))[0] == ["male", "female", None, None]
    assert read_column(rows, SEX, Entry("sex", {"male": None}))[0] == [None, "female", None, None]


def test_numbers_that_are_names_are_no_positions() -> None:
    grade = GRAPH["grade"]
    understood, wrong = read_column(Dataset.from_dict({"grade": [1.0, 3.0, 0.0, 2.5]}), grade, Entry("grade"))
    assert understood == ["1", "3", None, None]
    assert dict(wrong) == {"0": 1, "2.5": 1}


@pytest.mark.parametrize("values", [[0.5, 1.0], [1, 2, None], [1.0, 2.0, float("nan")], [-1, 1], [0, 1, 9], [1, 2, 3]])
def test_numbers_are_positions_only_if_all_of_them_are(values: list[Any]) -> None:
    rows = Dataset.from_dict({"sex": values})
    understood, wrong = read_column(rows, SEX, Entry("sex"))
    known = [value for value in values if value is not None and value == value]
    assert understood == [None] * len(values)
    assert sorted(map(float, wrong)) == known
    # Nor is what is left, once one of them has been given a name.
    understood, wrong = read_column(rows, SEX, Entry("sex", {as_text(known[-1]): "male"}))
    assert {*understood} == {"male", None}
    assert len(wrong) == len(known) - 1


def test_numbers_that_stand_for_a_missing_value_are_no_codes() -> None:
    rows = Dataset.from_dict({"sex": [0, 1, 9]})
    assert read_column(rows, SEX, Entry("sex", {"9": None}))[0] == ["male", "female", None]


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        (["x", "1", "nan"], {"x": 1, "nan": 1}),
        ([True, False, None], {"True": 1, "False": 1}),
        (["1_000", "4_2", "5"], {"1_000": 1, "4_2": 1}),
    ],
)
def test_what_is_no_number(values: list[Any], wrong: dict[str, int]) -> None:
    assert dict(read_column(Dataset.from_dict({"age": values}), GRAPH["age"], Entry("age"))[1]) == wrong


@pytest.mark.parametrize(
    ("values", "entry", "known"),
    [
        (["1.234", "20.500", "7", None], {}, [None] * 4),  # a thousand, or one
        (["1.234", "20.500"], {"factor": 1000}, [1234, 20500]),
        (["1.234", "20.500"], {"pattern": r"(\d+\.\d+)"}, [1.234, 20.5]),
        (["1.234", "20.5"], {}, [1.234, 20.5]),
        ([1.234, 20.5], {}, [1.234, 20.5]),
    ],
)
def test_texts_that_may_be_thousands_are_no_numbers(values: list[Any], entry: dict[str, Any], known: list[Any]) -> None:
    rows = Dataset.from_dict({"age": values})
    assert read_column(rows, GRAPH["age"], read_entry("age", entry))[0] == pytest.approx(known)


def test_dates_and_lists_are_no_numbers() -> None:
    rows = Dataset.from_dict({"age": [[1], [2]]}, features=Features({"age": [Value("int64")]}))
    assert read_column(rows, GRAPH["age"], Entry("age"))[0] == [None, None]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"hight": "x"}, "'hight'"),
        ({"sex": 3}, "columns: sex .* 3"),
        ({"sex": {"colum": "x"}}, "columns: sex"),
        ({"sex": {"values": ["a"]}}, "columns: sex: values"),
        ({"sex": "gender"}, "'gender'"),
        ({"image": "scan"}, "'scan'"),
    ],
)
def test_columns_that_cannot_be_understood(columns: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        translate(full(), GRAPH, columns)


def test_unknown_values_are_counted_and_the_fix_is_named() -> None:
    with pytest.raises(ValueError, match=r"'m' \(2 rows\), 'f' \(1 rows\).*{sex: {column: sex, values: "):
        translate(full(sex=["m", "f", "m", "male"]), GRAPH)
    with pytest.raises(ValueError, match=r"'\?' \(1 rows\).*{age: {column: age, val"):
        translate(full(age=["1", "2", "?", "4"]), GRAPH)


def test_rows_that_were_selected_keep_their_pictures() -> None:
    rows = translate(full().select([3, 1]), GRAPH)
    assert [np.asarray(image)[0, 0] for image in rows["image"]] == [3, 1]
    assert rows["age"][:] == [4, 2]


def test_the_columns_of_a_graph() -> None:
    entries = find_columns(GRAPH, {"sex": {"values": {1.0: "male", False: "female"}}, "age": "years"})
    assert {name: entry.column for name, entry in entries.items()} == {
        "image": "image",
        "age": "years",
        "sex": "sex",
        "grade": "grade",
    }
    assert entries["sex"].values == {"1": "male", "False": "female"}


# ---- patterns, sets of labels, defaults -----------------------------------------------------------------------------


def read(variable: Variable | str, values: list[Any], entry: dict[str, Any]) -> tuple[list[Any], dict[str, int]]:
    """What the entry of a variable makes of values, and what it does not know."""
    variable = GRAPH[variable] if isinstance(variable, str) else variable
    found = find_columns(CausalGraph([variable]), {variable.name: {"column": "x", **entry}})[variable.name]
    understood, wrong = read_column(Dataset.from_dict({"x": values}), variable, found)
    return understood, dict(wrong)


ILL = Variable(name="ill", kind="binary", categories=("no", "yes"))
SITE = Variable(name="site", kind="categorical", categories=("left", "right", "both"))
UNITS = {r"(\d+)Y": 1, r"(\d+)M": 0.5}


@pytest.mark.parametrize(
    ("entry", "values", "expected"),
    [
        ({"pattern": r"(\d+)Y"}, ["058Y", "003Y", None], [58, 3, None]),
        ({"pattern": UNITS}, ["058Y", "003M", ""], [58, 1.5, None]),
        ({"pattern": r"(\d+) cm", "factor": 10}, ["7 cm", "2 cm"], [70, 20]),
        ({"factor": 0.001}, [70_000, 1_500.0, None], [70, 1.5, None]),
        ({"pattern": r"(.+)y", "values": {"90+": 90}}, ["90+y", "45.5y"], [90, 45.5]),
        ({"pattern": r"(\d+)Y", "values": {"?": None, "old": 80}}, ["?", "old", "7Y"], [None, 80, 7]),
        ({"factor": 10, "values": {"9": 9}}, [9, 8], [9, 80]),  # values are what is meant, not what is converted
        ({"default": None}, ["5", "?", "6"], [5, None, 6]),
        ({"default": 50}, ["5", "?", None], [5, 50, None]),
        ({"values": {"": 3}}, ["5", "", None], [5, 3, 3]),
        ({"values": {None: 3}}, [5, None], [5, 3]),
    ],
)
def test_numbers_out_of_texts(entry: dict[str, Any], values: list[Any], expected: list[Any]) -> None:
    assert read("age", values, entry) == (pytest.approx(expected), {})


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ({"pattern": r"(\d+)Y"}, ["10Y5", "5Y", "x5Y"]),  # a part of a text is no number
        ({"pattern": UNITS}, ["411", "5Y", "5D"]),
    ],
)
def test_a_pattern_covers_all_of_a_number(entry: dict[str, Any], values: list[Any]) -> None:
    understood, wrong = read("age", values, entry)
    assert understood == [None, 5, None]
    assert set(wrong) == {values[0], values[2]}
    assert read("age", values, entry | {"default": None}) == (understood, {})


@pytest.mark.parametrize(
    ("variable", "entry", "values", "expected"),
    [
        (
            "sex",
            {"pattern": "sex=(.)", "values": {"M": "male", "F": "female"}},
            ["a/sex=M/1", "sex=F"],
            ["male", "female"],
        ),
        ("grade", {"pattern": r"\bG(\d)"}, ["tumour G2", "G3, late", None], ["2", "3", None]),
        (
            "sex",
            {"values": {"M": "male"}, "default": "female"},
            ["M", "x", "male", None],
            ["male", "female", "male", None],
        ),
        ("grade", {"default": None}, ["1", "9", "3"], ["1", None, "3"]),
        ("grade", {"default": 1}, ["2", "9"], ["2", "1"]),
        ("sex", {"default": None}, [0, 1], ["male", "female"]),  # what is known stays what it is
        (ILL, {"values": {1: "yes", 0: "no", -1: None, "": "no"}}, [1.0, 0.0, -1.0, None], ["yes", "no", None, "no"]),
    ],
)
def test_categories_out_of_texts(variable, entry, values, expected) -> None:
    assert read(variable, values, entry) == (expected, {})


CELLS = {
    "bars": ["Mass", "Effusion|Mass", "No Finding", "Effusion"],
    "semicolons": ["Mass", "Effusion; Mass", "No Finding", "Effusion "],
    "commas": ["Mass", "Mass,Effusion", "No Finding", " Effusion"],
    "text of lists": ["['Mass']", "['Mass', 'Effusion']", '["No Finding"]', "['Effusion ']"],
    "text of arrays": ["['Mass']", "['Mass' 'Effusion']", "['No Finding']", "['Effusion']"],
    "without quotes": ["[Mass]", "[Mass, Effusion]", "[No Finding]", "[Effusion]"],
    "lists": [["Mass"], ["Mass", "Effusion"], ["No Finding"], ["Effusion"]],
    "others between bars": ["Mass", "Effusion|Mass, small", "No Finding", "Effusion"],
    "longer labels": ["Mass|No Effusion", "Effusion|Effusions", "No Finding", "Effusion"],
}


@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS.keys())
def test_sets_of_labels(cells: list[Any]) -> None:
    assert read(ILL, [*cells, None], {"contains": ["Effusion"]}) == (["no", "yes", "no", "yes", None], {})
    assert read(ILL, [*cells, None], {"contains": ["Effusion"], "default": "no"})[0][-1] == "no"
    mapping = {"No Finding": "no", "Effusion": "yes"}
    understood, wrong = read(ILL, cells, {"contains": mapping})
    assert understood == [None, "yes", "no", "yes"]
    assert list(wrong.values()) == [1]
    assert read(ILL, cells, {"contains": mapping, "default": None}) == (understood, {})


def test_the_first_label_of_the_mapping_counts() -> None:
    cells = ["left|right", "right|left", "right", "both|left"]
    contains = {"both": "both", "right": "right", "left": "left"}
    assert read(SITE, cells, {"contains": contains})[0] == ["right", "right", "right", "both"]
    assert read(SITE, cells, {"contains": {"both": None, **dict(reversed(contains.items()))}})[0][0] == "left"


@pytest.mark.parametrize(
    ("variable", "entry", "named"),
    [
        ("age", {"pattern": r"\d+Y"}, "group"),
        ("age", {"pattern": r"(\d)(Y)"}, "group"),
        ("age", {"pattern": "("}, "regular expression"),
        ("age", {"pattern": 3}, "pattern"),
        ("age", {"pattern": UNITS, "factor": 2}, "factor"),
        ("age", {"pattern": {r"(\d+)Y": "x"}}, "factor"),
        ("age", {"factor": 0}, "factor"),
        ("age", {"factor": "2"}, "factor"),
        ("age", {"default": "old"}, "'old'"),
        ("age", {"default": [1]}, "default"),
        ("age", {"contains": ["a"]}, "contains"),
        ("sex", {"factor": 2}, "factor"),
        ("sex", {"pattern": UNITS}, "factor"),
        ("sex", {"default": "other"}, "'other'"),
        ("sex", {"values": {1: "Male", 2: "female"}}, "'Male'"),
        ("age", {"values": {"?": None, "old": "80+"}}, "'80\\+'"),
        ("sex", {"contains": {"a": "other"}}, "'other'"),
        ("sex", {"contains": {"a": "male"}, "values": {"b": "male"}}, "contains"),
        ("sex", {"contains": "a"}, "contains"),
        (SITE, {"contains": ["left"]}, "contains"),
    ],
)
def test_entries_that_do_not_suit_their_variable(variable, entry: dict[str, Any], named: str) -> None:
    name = variable if isinstance(variable, str) else variable.name
    with pytest.raises(ValueError, match=f"columns: {name}.*{named}"):
        read(variable, ["a"], entry)


@pytest.mark.parametrize(
    ("splits", "is_doubtful"),
    [
        ([[1, 2, 2], [2], [1]], True),  # of three categories: each is a place, and none is the first
        ([[1, 2, 0], [2], [1]], False),
        ([[2, 2, 2], [1], [0]], False),  # the others have it
        ([["left", "right"], ["left"], ["both"]], False),
        ([[1.0, 2.0, None], [None], [1.0]], True),
    ],
)
def test_numbers_without_a_zero_are_no_places(splits: list[list[Any]], is_doubtful: bool) -> None:
    names = ("train", "validation", "test")
    table = DatasetDict({name: Dataset.from_dict({"site": values}) for name, values in zip(names, splits, strict=True)})
    assert bool(doubt_places(table, SITE, Entry("site"))) == is_doubtful
    translated = Entry("site", {"1": "left", "2": "right"})
    assert doubt_places(table, SITE, translated) is None


@pytest.mark.parametrize(
    ("categories", "found", "wrong", "offered"),
    [
        (("F", "M"), ["F", "M"], ["O"], {"O": "null"}),
        (("male", "female"), ["male", "female"], ["Unknown"], {"Unknown": "null"}),
        (("no", "yes"), ["no", "yes"], ["-1"], {"-1": "null"}),
        (("no", "yes"), [], ["-1", "0", "1"], {"-1": "null", "0": "...", "1": "..."}),
        (("no", "yes"), [], ["-1", "1"], {"-1": "...", "1": "..."}),
        (("no", "yes"), [], ["9", "0", "1"], {"9": "null"}),
        (("male", "female"), ["male"], ["1"], {"1": "..."}),
        (("male", "female"), [], ["1", "2"], {"1": "...", "2": "..."}),
        (("male", "female"), [], ["MALE", "f", "?"], {"MALE": "male", "f": "female", '"?"': "null"}),
        (("normal", "nodule"), ["normal", "nodule"], ["hernia", "edema"], {"hernia": "null", "edema": "null"}),
    ],
)
def test_no_category_is_invented_for_what_does_not_fit(categories, found, wrong, offered) -> None:
    variable = Variable(name="x", kind="binary", categories=categories)
    message = explain_unknown(variable, "column", Counter(wrong), found)
    assert [f"{value}: {meant}" in message for value, meant in offered.items()] == [True] * len(offered)


@pytest.mark.parametrize(
    "texts", [["male ", " f"], ["Yes", "NO"], ["?", "~"], ["-", "null"], ["a: b", "[1, 2)"], ["007", "1_0"]]
)
def test_what_is_proposed_can_be_pasted(texts: list[str]) -> None:
    """YAML would read some texts as others."""
    message = explain_unknown(GRAPH["sex"], "sex", Counter(texts))
    written = message.partition("by columns: ")[2].partition(", or by default")[0]
    proposed = yaml.safe_load(written.replace("...", "male"))
    assert set(find_columns(GRAPH, proposed)["sex"].values) == set(texts)
