import pytest
import yaml

from softcft.data.entries import read_entry
from softcft.data.tables import as_number
from softcft.data.value_patterns import looks_like, mean_nothing, spelled_alike


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        (["20140915", "20101231"], "dates"),
        (["2014-09-15", "1999-01-31"], "dates"),
        (["2014/09/15 10:30:00", "2014/09/16 11:00:00"], "dates"),
        (["15.09.2014", "1.2.2015"], "dates"),
        (["9/15/14", "12/1/15"], "dates"),
        (["Jan 5, 2014", "March 12, 2015"], "dates"),
        (["05-Mar-1950", "1 Feb 51"], "dates"),
        (["45,2", "7,25", "60"], "decimal commas"),
        (["1,234", "7,250", "60"], "before thousands"),
        (["1 234", "7\u00a0250", "60"], "between thousands"),
        (["1'234.5", "7'250"], "between thousands"),
        (["['normal']", "['effusion', 'nodule']"], "several labels"),
        (["[normal, nodule]", "[normal]"], "several labels"),
        (["Effusion", "Mass", "Effusion|Mass", "No Finding"], "several labels"),
        (["cough;fever", "fever", "cough; pain", "pain"], "several labels"),
        (["cough, fever", "fever", "cough"], "several labels"),
        (["p1/view1.jpg", "p2/view1.jpg"], "files"),
        (["a b.PNG", "c.dcm"], "files"),
        (["45 y", "46 y"], '"(\\\\d+) y": 1'),
        (["45 years", "2 months"], '"(\\\\d+) months": 0.0833'),
        (["45 y", "46", "47"], '"(\\\\d+)": 1'),
        (["3.5 yrs", "090Y"], '"([\\\\d.+-]+) yrs": 1'),
        ([f"{i} cm" for i in range(150, 170)], '"(\\\\d+) cm": 1'),
        ([f"{i / 2}%" for i in range(20)], '"([\\\\d.+-]+)%": 1'),
        ([f"-{i} (HU)" for i in range(20)], '"([\\\\d.+-]+) \\\\(HU\\\\)": 1'),
        (["Effusion| Mass", "Mass ", "effusion | Mass", "none"], "several labels"),
        (["058Y", "003M"], '"(\\\\d+)M": 0.0833'),
        (["Mass", "Mass|Nodule", "Mass|Edema", "Nodule"], "contains: {Mass: ..., Nodule: ...}"),
    ],
)
def test_what_is_neither_a_quantity_nor_a_category_is_named(texts, word):
    assert word in (looks_like(texts) or "")


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["20140915"],
        ["20140915", "20149999"],  # numbers of eight digits
        ["10000000", "99999999"],
        ["1.5", "2"],
        ["no", "yes"],
        ["AP, supine", "PA, erect"],  # words with a comma
        ["['normal']", "['effusion']"],
        ["1-2", "3-5"],
        ["12", "1,000,000"],
        ["A|B", "C"],
        ["1a", "1b", "2"],
        ["1a", "2a", "3a"],  # few: names of categories
        [f"{i}-{i + 9}" for i in range(20)],
        [f"20/{i}" for i in range(20)],
    ],
)
def test_quantities_and_categories_are_left_alone(texts):
    assert looks_like(texts) is None


@pytest.mark.parametrize(
    ("categories", "groups"),
    [
        (["F", "M", "female", "Male", " F", "m"], [["F", "female", " F"], ["M", "Male", "m"]]),
        (["yes", "YES", "no", "No"], [["yes", "YES"], ["no", "No"]]),
        (["no  finding", "No Finding"], [["no  finding", "No Finding"]]),
        (["no", "normal", "nodule"], []),
        (["A", "AB", "B", "O"], []),
        (["I", "III", "II"], []),
        (["N", "normal", "nodule"], []),  # of which one?
        (["0", "1"], []),
    ],
)
def test_spellings_of_one_category_are_put_together(categories, groups):
    assert spelled_alike(categories) == groups


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (["-1", "0", "1"], ["-1"]),
        (["-1", "0"], ["-1"]),
        (["0", "1", "9"], ["9"]),
        (["0", "1", "2", "-9", "99"], ["-9", "99"]),
        (["Female", "Male", "Unknown"], ["Unknown"]),
        (["F", "M", "O"], ["O"]),
        (["m", "f", "U"], ["U"]),
        (["yes", "no", "not reported", "?"], ["not reported", "?"]),
        (["benign", "malignant", "NOT_KNOWN"], ["NOT_KNOWN"]),
        (["-1", "1"], []),  # no and yes, or uncertain and yes
        ([str(i) for i in range(10)], []),  # digits
        (["1", "2", "9"], []),
        (["no", "yes"], []),
        (["-1", "a"], []),
        (["none", "No Finding", "other"], []),
    ],
)
def test_categories_that_say_that_nothing_is_known(categories, expected):
    assert mean_nothing(categories) == expected


@pytest.mark.parametrize(
    "texts", [[f"{i - 9} (HU)" for i in range(20)], [f"{i / 4}%" for i in range(20)], ["3.5 y", "7 y"]]
)
def test_what_is_proposed_for_units_reads_them(texts: list[str]) -> None:
    proposed = looks_like(texts).partition("pattern: ")[2][:-2]
    entry = read_entry("x", {"pattern": yaml.safe_load(proposed)})
    assert [as_number(entry.meaning(text, whole=True)[0]) for text in texts] == [
        float(text.split()[0].strip("%")) for text in texts
    ]
