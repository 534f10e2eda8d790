"""What a model card says, whatever a user has called things."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from softcft import AttributeClassifier, CausalGraph, Variable
from softcft.data.config import FOLDERS
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.data.sources import GRAPHS
from softcft.escaping import as_mermaid
from softcft.hub.card import SOURCES, CardTable, has_people, make_card
from softcft.models.sight import Sight
from tests.recipes.small_pipeline import make_pipeline

ROOT = Path(__file__).parents[2]
EVIL = (
    "<script>alert(1)</script>",
    "a|b",
    "$x$",
    "[x](http://y)",
    '"]; click v0 "http://y',
    "```\n# x",
    "---\nlicense: mit",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


def card_of(folder: Path, graph: CausalGraph = PHANTOM_GRAPH, name: str = "phantom", **results: Any) -> ModelCard:
    settings = {"data": {"sample_size": 16}, "graph": graph.to_list(), "cft": {"dataset_name": name}}
    return make_card(folder, "owner/name", settings, **results)


def test_it_has_all_that_a_reader_needs(folder: Path) -> None:
    table = CardTable(
        "Table 1", "What the judge sees.", [["Intervention", "Sex, AUC (%)"], ["do(race)", "99.1 [98, 100]"]]
    )
    score = {"intervention": "race", "variable": "sex", "metric": "auc", "value": 99.1}
    card = card_of(folder, tables=[table], scores=[score])
    assert card.data.library_name == "diffusers"
    assert {"softcft", "counterfactual", "causality"} <= set(card.data.tags)
    assert card.data.license == "apache-2.0"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("auc", 99.1, "phantom")
    assert "do(race)" in result.metric_name
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()  # it is read as it was written
    text = card.text
    for variable in PHANTOM_GRAPH.variables:
        assert re.search(rf"^\| {variable.name} \| {variable.kind} \|", text, re.MULTILINE)
        assert all(category in text for category in variable.categories)
    assert "18 to 92 years" in text
    assert "v0 --> v3" in text  # age causes the disease
    assert "| do(race) | 99.1 [98, 100] |" in text
    assert text.index("import softcft") < text.index("from_pretrained")
    for said in ("Causal sufficiency", "not identified", "clinical decisions", "race or sex", "guide", "more clearly"):
        assert said in text
    assert "](data:" not in text  # no picture
    assert "![" not in text


def test_it_says_what_the_guide_does_not_see(tmp_path: Path) -> None:
    name = EVIL[0]
    graph = CausalGraph([Variable(name=name, kind="binary", categories=("a", "b")), *PHANTOM_GRAPH.variables[:1]])
    pipeline = make_pipeline(tmp_path / "pipeline", causal_graph=graph)
    before = card_of(pipeline, graph).text
    guide = AttributeClassifier.from_pretrained(pipeline / "classifier")
    guide.store_sight({name: Sight("auc", 0.558, 0.52, 0.6), "age": Sight("skill", 0.3, 0.2, 0.4)})
    for folder in (pipeline / "classifier", tmp_path / "guide"):
        guide.save_pretrained(folder)
    for folder in (pipeline, tmp_path / "guide"):
        text = card_of(folder, graph).text
        (line,) = [line for line in text.splitlines() if "55.8" in line]
        assert "script" in line
        assert "<script" not in line
    assert "margin" not in before


def test_it_does_not_pretend_that_something_was_measured(folder: Path) -> None:
    card = card_of(folder)
    assert card.data.eval_results is None
    assert "Nothing is known of how good its counterfactuals are" in card.text


def test_it_cites_what_the_citation_file_cites(folder: Path) -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = card_of(folder).text
    assert all(title in text for title in (cited["title"], *(entry["title"] for entry in cited["references"][:2])))


def test_the_code_that_it_shows_is_python_for_pipelines_and_parts(folder: Path) -> None:
    for part, name in ((folder, "DiffusionPipeline"), (folder / "hvae", "HVAEModel")):
        (code,) = re.findall(r"```python\n(.*?)```", card_of(part).text, re.DOTALL)
        compile(code, "card", "exec")
        assert f'{name}.from_pretrained("owner/name")' in code


@pytest.mark.parametrize(
    "name", ["mimic_cxr", "nih", "chexpert", "padchest", "someone/xrays", "/home/someone/xrays", "outputs"]
)
def test_it_says_why_models_of_patients_are_private(folder: Path, name: str) -> None:
    assert has_people(name)
    card = card_of(folder, name=name)
    assert "can give away what they were trained on" in card.text
    assert card.data.license in ("other", "unknown")
    assert "/home/someone" not in str(card)  # a path is nobody's business
    assert card.data.datasets == ("someone/xrays" if name == "someone/xrays" else None)


def test_a_data_set_that_is_not_sure_has_no_card(folder: Path) -> None:
    """Or a model of patients would be called one of the phantom."""
    settings = {"data": {"dataset_name": "phantom", "sample_size": 16}, "graph": PHANTOM_GRAPH.to_list()}
    for cft in ({"cft": {"dataset_name": "mimic_cxr"}}, {"data": {"sample_size": 16}}):
        with pytest.raises(ValueError, match=r"config\.yaml must have one dataset_name, got"):
            make_card(folder, "owner/name", settings | cft)


def test_every_data_set_that_comes_with_softcft_is_described() -> None:
    assert set(SOURCES) == {*GRAPHS, *FOLDERS}
    assert [name for name in SOURCES if not has_people(name)] == ["phantom", "morphomnist"]


def test_names_are_text_in_a_card(folder: Path) -> None:
    graph = CausalGraph([Variable(name=name, kind="binary", categories=("no", name)) for name in EVIL])
    table = CardTable(EVIL[0], EVIL[3], [EVIL, EVIL])
    scores = [{"intervention": name, "variable": name, "metric": "auc", "value": 1.0} for name in EVIL]
    card = ModelCard(str(card_of(folder, graph, tables=[table], scores=scores)))
    assert card.data.license == "apache-2.0"
    assert len(card.data.eval_results) == len(EVIL)
    outside, code = re.sub(r"^```(.*?)^```", "", card.text, flags=re.DOTALL | re.MULTILINE), card.text
    assert "<script" not in outside
    assert "](http" not in outside.replace("](https://arxiv.org", "")
    assert not re.search(r"^# x|^license: mit", code, re.MULTILINE)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in rows} == {4 + 2, len(EVIL) + 2}
    (diagram,) = re.findall(r"```mermaid\n(.*?)^```", card.text, re.DOTALL | re.MULTILINE)
    lines = diagram.splitlines()
    assert len(lines) == 1 + 2 * len(EVIL) + 1
    assert all(
        re.fullmatch(r'  v\d+\["[^"\[\]<>`]*"\]|  v\d+ --> image|  image\(\["image"\]\)', line) for line in lines[1:]
    )


def test_labels_of_diagrams_show_any_sign() -> None:
    assert as_mermaid("é age_2, (mg)") == "é age_2, (mg)"
    assert as_mermaid('a"b\n#c') == "a#34;b #35;c"
