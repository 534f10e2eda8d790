from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from softcft.data.columns import translate
from softcft.data.draft import draft_graph
from softcft.graph import CausalGraph
from softcft.training.parsing import parse_config

N = 40


def table(image: str = "image", types: dict[str, Any] | None = None, **columns: Any) -> DatasetDict:
    """Rows without pictures; a column is a function of the row."""
    rows = Dataset.from_dict({image: [None] * N}, features=Features({image: Image()}))
    for name, column in columns.items():
        rows = rows.add_column(name, [column(i) for i in range(N)])
    return DatasetDict({"train": rows.cast(Features({**rows.features, **(types or {})}))})


def variables(**columns: Any) -> dict[str, Any]:
    return {variable.pop("name"): variable for variable in yaml.safe_load(draft_graph(table(**columns)))["graph"]}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (lambda i: "ab"[i % 2], {"kind": "binary", "categories": ["a", "b"]}),
        (lambda i: ["no", "yes", None][i % 3], {"kind": "binary", "categories": ["no", "yes"]}),
        (lambda i: i % 2 == 0, {"kind": "binary", "categories": ["False", "True"]}),
        (lambda i: [1, 10, 2][i % 3], {"kind": "categorical", "categories": ["1", "2", "10"]}),
        (lambda i: [0.0, 1.0, None][i % 3], {"kind": "binary", "categories": ["0", "1"]}),
        (lambda i: str(i % 3), {"kind": "categorical", "categories": ["0", "1", "2"]}),
        (lambda i: 18.3 + 1.9 * i, {"kind": "continuous", "low": 18, "high": 93}),
        (lambda i: str(i / 10), {"kind": "continuous", "low": 0, "high": 3.9}),
        (lambda i: 3 * i - 1200, {"kind": "continuous", "low": -1200, "high": -1080}),
        (lambda i: 1e-4 * i + 0.5, {"kind": "continuous", "low": 0.5, "high": 0.5039}),
    ],
)
def test_kinds_are_guessed(column: Any, expected: dict[str, Any]) -> None:
    assert variables(x=column) == {"x": expected}


def test_class_labels_keep_their_names_and_order() -> None:
    types = {"label": ClassLabel(names=["small", "none", "big"])}
    assert variables(types=types, label=lambda i: 2 * (i % 2))["label"]["categories"] == ["small", "big"]


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        (
            "subject_id",
            lambda i: i // 2,
            "an identifier, it seems; if it is a patient's, --group_column subject_id keeps",
        ),
        ("id", lambda i: f"x{i}", "an identifier, it seems"),
        ("PatientID", lambda i: f"x{i}", "an identifier, it seems"),
        ("row", lambda i: i + 7, "the numbers of the rows, it seems"),
        ("notes", lambda i: f"x{i}", "40 different words; for a variable, merge them by columns"),
        ("scanner", lambda i: "A", "always 'A'"),
        ("empty", lambda i: None, "no values"),
        ("box", lambda i: [1, 2], "neither numbers nor words"),
        ("scanned", lambda i: 20140101 + i % 28, "dates, it seems"),
        ("labels", lambda i: ["Mass", "Mass|Nodule", "Nodule"][i % 3], "several labels in one cell, it seems"),
        ("source", lambda i: f"site/{i % 4}.png", "names of files, it seems"),
        ("comment", lambda i: f"x{i}" if i < 15 else None, "another one in each row"),
        ("split", lambda i: i % 3, "the split of a row, it seems"),
        ("Usage", lambda i: ["Training", "PublicTest"][i % 2], "the split of a row, it seems"),
        ("cohort", lambda i: ["train", "val", "test"][i % 3], "the split of a row, it seems"),
        ("RID", lambda i: 4000 + i // 2 * 7, "an identifier, it seems; if it is a patient's, --group_column RID keeps"),
        ("age", lambda i: f"0{18 + i}Y", "numbers with units, it seems"),
        ("weight", lambda i: f"{i},5", "numbers with decimal commas, it seems"),
    ],
)
def test_what_is_left_out_is_said(name: str, column: Any, reason: str) -> None:
    text = draft_graph(table(**{name: column, "sex": lambda i: "ab"[i % 2]}))
    assert f"#   {name}: {reason}" in text
    assert [variable["name"] for variable in yaml.safe_load(text)["graph"]] == ["sex"]


@pytest.mark.parametrize(
    ("column", "word"),
    [
        (lambda i: 1930 + 2 * i, "years"),
        (lambda i: 1 + i % 2, "codes"),
        (lambda i: [-1, 1][i % 2], '{"-1": "no", "1": "yes"}'),
        (lambda i: "FMO"[2 if i == 7 else i % 2], "O: null"),
        (lambda i: "90+" if i == 7 else str(20 + i), "90+"),
        (lambda i: ["F", "f", "M"][i % 3], "spellings"),
        (lambda i: [-1.0, 0.0, 1.0, None][i % 4], '"-1": null'),
        (lambda i: ["F", "M", "Unknown"][i % 3], "Unknown: null"),
        (lambda i: i % 2, None),
        (lambda i: 20 + 2 * i, None),
    ],
)
def test_what_a_variable_stands_for_is_asked(column: Any, word: str | None) -> None:
    text = draft_graph(table(x=column))
    (line,) = (line for line in text.splitlines() if "name: x" in line)
    assert (word in line.partition("#")[2]) if word else "#" not in line
    assert [variable["name"] for variable in yaml.safe_load(text)["graph"]] == ["x"]


@pytest.mark.parametrize("odd", ["90+", "unclear", "?", "45 years"])
def test_a_few_texts_among_numbers_become_missing(odd: str) -> None:
    rows = table(x=lambda i: odd if i == 7 else str(20 + i))
    draft = yaml.safe_load(draft_graph(rows))
    assert draft["columns"] == {"x": {"column": "x", "values": {odd: None}}}
    translated = translate(rows["train"], CausalGraph(draft["graph"]), draft["columns"])
    assert [i for i, value in enumerate(translated["x"]) if value is None] == [7]


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("is_whole", [True, False])
def test_columns_of_one_attribute_are_told_from_several(number: int, is_whole: bool) -> None:
    """Three or more columns of 0 and 1, each row with a 1 in exactly one of them."""
    kinds = {f"kind{k}": lambda i, k=k: float((i if i or is_whole else k) % number == k) for k in range(number)}
    draft = draft_graph(table(sex=lambda i: i // 2 % 2, **kinds, ill=lambda i: i // 3 % 2))
    remarks = [line for line in draft.splitlines() if line.startswith("#") and "idxmax" in line]
    assert len(remarks) == (number > 2 and is_whole)
    for remark in remarks:
        assert all(name in remark for name in kinds)
        assert "sex" not in remark
        assert "ill," not in remark
    assert len(yaml.safe_load(draft)["graph"]) == number + 2


def test_words_that_make_no_variable_are_not_called_identifiers() -> None:
    assert set(variables(paid=lambda i: "ab"[i % 2], grid=lambda i: i / 7, humid=lambda i: i % 2)) == {
        "paid",
        "grid",
        "humid",
    }


def test_a_draft_reads_its_own_table(tmp_path: Path) -> None:
    rows = table(
        "scan",
        {"label": ClassLabel(names=["on", "off"])},
        **{
            "json.age": lambda i: i * 1.5,
            "json.sex": lambda i: i % 2 == 0,
            "label": lambda i: i % 2,
            "odd name: #1": lambda i: ["yes, it is", "1e3", "null"][i % 3],
            "other.age": lambda i: i % 2,
        },
    )
    text = draft_graph(rows)
    (tmp_path / "graph.yaml").write_text(text)
    (tmp_path / "settings.yaml").write_text("data:\n")
    flags = ["--graph", str(tmp_path / "graph.yaml")]
    (draft,) = parse_config("data", default_config=tmp_path / "settings.yaml", argv=flags)
    graph = CausalGraph(draft["graph"])
    assert graph.names == ("age", "sex", "label", "odd name: #1")
    assert draft["columns"] == {"image": "scan", "age": "json.age", "sex": "json.sex"}
    assert "#   other.age: there is another 'age'" in text
    translated = translate(rows["train"], graph, draft["columns"])
    assert all(None not in translated[name][:] for name in graph.names)


def test_tables_without_pictures_or_variables() -> None:
    with pytest.raises(ValueError, match=r"The data set has no column of pictures; it has \['a'\]. If one of them"):
        draft_graph(DatasetDict({"train": Dataset.from_dict({"a": [1, 2]})}))
    with pytest.raises(ValueError, match=r"None of the columns could be a variable of a graph. Add columns of attrib"):
        draft_graph(table())
    with pytest.raises(ValueError, match=r"could be a variable of a graph \(a: always '1'\)"):
        draft_graph(table(a=lambda i: 1))
