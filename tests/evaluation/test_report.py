import base64
import json
import re

import pandas as pd
import pytest

from softcft.data.phantom import PHANTOM_GRAPH
from softcft.evaluation.report import NOTES, SETTINGS, write_report
from softcft.evaluation.tables import COLUMNS, report_tables

NAN = float("nan")


def results(*rows, seed=0, resampled="subject"):
    """Rows of (table, cft, intervention, variable, predictor, metric, value, low, high)."""
    return pd.DataFrame([(table, "toy", seed, *rest, resampled) for table, *rest in rows], columns=COLUMNS)


def table1(seed=0, shift=0.0, predictor="judge"):
    """Real images, no CFT and soft CFT under do(race), of race, age and sex."""

    def row(cft, intervention, variable, metric, value, width):
        return ("effectiveness", cft, intervention, variable, predictor, metric, value, value - width, value + width)

    rows = [row("real", "none", "race", "auc", 93.8, 0.5), row("real", "none", "age", "mae", 5.0, 0.1)]
    for cft, race, age in (("none", 68.9, 5.25), ("soft", 98.7 + shift, 4.9)):
        rows += [row(cft, "race", "race", "auc", race, 0.4), row(cft, "race", "race", "auc_change", race - 93.8, 0.3)]
        rows += [row(cft, "race", "age", "mae", age, 0.2), row(cft, "race", "age", "mae_change", age - 5.0, 0.02)]
        rows.append(row(cft, "race", "race", "logit_shift", 0.25, 0.1))
    return results(*rows, seed=seed)


def test_layout_of_the_paper():
    first, logits = report_tables(table1(), PHANTOM_GRAPH)
    assert first.title == "Table 1: effectiveness and amplification, by the judge"
    assert first.frame.columns.tolist() == ["Intervention", "CF type", "Age, MAE (years)", "Race, AUC (%)"]
    assert first.frame.to_numpy().tolist() == [
        ["none", "Real images", "5.00", "93.8"],
        ["do(race)", "No CFT", "5.25 (↑ 0.25 [0.23, 0.27])", "68.9 (↓ 24.9 [-25.2, -24.6])"],
        ["do(race)", "Soft-CFT", "4.90 (↓ 0.10 [-0.12, -0.08])", "98.7 (↑ 4.9 [4.6, 5.2])"],
    ]
    assert logits.frame.to_numpy().tolist() == [
        ["do(race)", "No CFT", "0.25 [0.15, 0.35]"],
        ["do(race)", "Soft-CFT", "0.25 [0.15, 0.35]"],
    ]


def test_seeds_are_averaged_and_the_interval_holds_all_of_them():
    first = report_tables(pd.concat([table1(seed=0), table1(seed=1, shift=-1.0)]), PHANTOM_GRAPH)[0]
    assert first.frame.iloc[2]["Race, AUC (%)"] == "98.2 (↑ 4.4 [3.6, 5.2])"
    assert "Means of 2 seeds" in first.caption
    assert "seeds" not in report_tables(table1(), PHANTOM_GRAPH)[0].caption


@pytest.mark.parametrize(("resampled", "other"), [("subject", "image"), ("image", "subject")])
def test_captions_say_what_was_resampled(resampled, other):
    rows = [("axioms", "none", "race", "image", "", "frechet_excess", 1.0, 0.5, 1.5)]
    rows.append(("shift", "none", "race", "sex", "judge", "energy[sex female]", 0.2, NAN, NAN))
    metrics = pd.concat([table1().assign(resampled=resampled), results(*rows, resampled=resampled)])
    captions = {table.title.partition(":")[0]: table.caption for table in report_tables(metrics, PHANTOM_GRAPH)}
    drawn = ("Table 1", "Distribution shift of embeddings", "Realism")
    words = ("resampled by {}.", "of whole {}s.", "groups of {}s.")
    assert all(word.format(resampled) in captions[name] for name, word in zip(drawn, words, strict=True))
    assert not any(word.format(other) in captions[name] for name in drawn for word in words)


def test_a_change_that_is_not_seen_has_no_arrow():
    rows = table1()
    rows.loc[rows["metric"] == "auc_change", ["value", "low", "high"]] = [0.04, -0.04, 0.1]
    assert report_tables(rows, PHANTOM_GRAPH)[0].frame.iloc[2]["Race, AUC (%)"] == "98.7 (· 0.0 [0.0, 0.1])"


def test_without_resamples_there_are_no_brackets():
    rows = table1().assign(low=NAN, high=NAN)
    assert report_tables(rows, PHANTOM_GRAPH)[0].frame.iloc[2]["Race, AUC (%)"] == "98.7 (↑ 4.9)"


def test_each_table_has_its_rows_and_its_order():
    tables = report_tables(
        pd.concat(
            [
                table1(predictor="guide"),
                table1(),
                results(
                    ("utility", "real", "none", "sex", "", "auc", 99.6, 99.0, 99.9),
                    ("utility", "soft", "race", "sex", "", "auc", 99.5, 99.0, 99.9),
                    ("utility", "soft", "race", "sex", "", "auc_change", -0.1, -0.2, 0.0),
                    ("shift", "soft", "sex", "race", "judge", "energy[White]", 0.034, NAN, NAN),
                    ("shift", "soft", "sex", "race", "judge", "energy_p[White]", 0.041, NAN, NAN),
                    ("axioms", "soft", "none", "image", "", "composition_10", 1.25, 1.2, 1.3),
                    ("axioms", "soft", "sex", "image", "", "cld", 0.9, 0.8, 1.0),
                    ("truth", "soft", "sex", "image", "", "faithfulness_ratio", 0.4, 0.3, 0.5),
                    ("truth", "soft", "sex", "disease", "judge", "expression_error", 0.2, 0.1, 0.3),
                ),
            ]
        ),
        PHANTOM_GRAPH,
    )
    by_title = {table.title: table.frame for table in tables}
    assert [title.split(":")[0] for title in by_title][:2] == ["Table 1"] * 2
    assert "judge" in next(iter(by_title))
    assert "guide" in list(by_title)[1]
    utility = by_title["Table 2: predictors trained on counterfactuals, tested on real images"]
    assert utility.to_numpy().tolist() == [
        ["none", "Real images", "99.6"],
        ["do(race)", "Soft-CFT", "99.5 (↓ 0.1 [-0.2, 0.0])"],
    ]
    assert by_title["Distribution shift of embeddings"].iloc[0]["Race: White"] == "0.034 (p 0.041)"
    axioms = by_title["Axioms"]
    assert axioms["Intervention"].tolist() == ["none", "do(sex)"]
    assert axioms.iloc[0]["Composition, 10x"] == "1.25 [1.20, 1.30]"
    assert axioms.iloc[0]["CLD"] == ""
    assert by_title["Ground truth"].iloc[0]["Faithfulness ratio"] == "0.40 [0.30, 0.50]"
    assert by_title["Ground truth: expression"].iloc[0]["Disease"] == "0.20 [0.10, 0.30]"


def test_strength_has_a_table_of_the_variables_that_were_moved():
    def row(variable, metric, value, width=NAN):
        return ("effectiveness", "truth", "age", variable, "judge", metric, value, value - width, value + width)

    *_, table = report_tables(
        results(
            row("age", "mae", 5.0, 0.1),
            row("age", "mae_excess", -0.004, 0.02),
            row("age", "ks", 0.012),
            row("disease", "ks", 0.034),
            row("disease", "auc_excess", 0.5, 0.25),
            row("disease", "logit_excess", 1.25, 0.5),
            row("disease", "ece_excess", 2.0),
            row("sex", "logit_shift", 0.1, 0.1),
        ),
        PHANTOM_GRAPH,
    )
    assert table.title == "Table 1e: how strong interventions are, against real images with the same attributes"
    assert table.frame.to_dict("records") == [
        {
            "Intervention": "do(age)",
            "CF type": "True counterfactuals",
            "Age, MAE (years)": "0.00 [-0.02, 0.02]",  # three digits of the error itself
            "Age, KS": "0.01",
            "Disease, AUC (points)": "0.50 [0.25, 0.75]",
            "Disease, log-odds (nats)": "1.25 [0.75, 1.75]",
            "Disease, KS": "0.03",
            "Disease, ECE (%)": "2.00",
        }
    ]


def test_the_excess_of_a_small_error_is_as_precise_as_the_error():
    keys = ("effectiveness", "soft", "age", "age", "judge")
    *_, table = report_tables(
        results((*keys, "mae", 0.083, 0.08, 0.09), (*keys, "mae_excess", -0.0121, -0.02, 0.0)), PHANTOM_GRAPH
    )
    assert table.frame.iloc[0]["Age, MAE (years)"] == "-0.0121 [-0.0200, 0.0000]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda df: df.drop(columns="low"), r"lacks the columns \['low'\]"),
        (lambda df: df.drop(columns="resampled"), r"lacks the columns \['resampled'\]"),
        (lambda df: df.iloc[:0], "no rows"),
        (lambda df: df.assign(cft="medium"), r"must be one of .*got \['medium'\]"),
        (lambda df: df.assign(resampled="row"), r"'resampled'.* got \['row'\]"),
        (lambda df: pd.concat([df, df]), "more than one result for .*'race'"),
        (lambda df: pd.concat([df, df.assign(dataset="other")]), r"one data set, got \['other', 'toy'\]"),
    ],
)
def test_rejects(change, message):
    with pytest.raises(ValueError, match=message):
        report_tables(change(table1()), PHANTOM_GRAPH)


@pytest.fixture
def runs(tmp_path):
    """Two runs on disk, as evaluate.py leaves them."""
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        (folder / "metrics").mkdir(parents=True)
        table1(seed=seed).to_csv(folder / "metrics" / "evaluation.csv", index=False)
        (folder / "config.yaml").write_text(f"seed: {seed}  # <&>\n")
        (folder / "figures").mkdir()
        (folder / "figures" / "counterfactuals_soft.png").write_bytes(b"picture %d" % seed)
    return [tmp_path / "seed0", tmp_path / "seed1"]


def test_every_form_has_the_same_numbers(runs, tmp_path):
    out = tmp_path / "new" / "report"
    write_report(runs, out, PHANTOM_GRAPH, "Phantom")
    written = pd.read_csv(out / "metrics.csv", keep_default_na=False)
    assert tuple(written.columns) == COLUMNS
    assert len(written) == 2 * len(table1())
    assert set(written["cft"]) == {"real", "none", "soft"}
    assert set(written["intervention"]) == {"none", "race"}
    tables = report_tables(pd.concat([table1(0), table1(1)]), PHANTOM_GRAPH)
    numbers = re.findall(r"\d+\.\d+", " ".join(tables[0].frame.to_numpy().ravel()))
    assert numbers
    for form in ("report.md", "report.tex", "report.html"):
        text = (out / form).read_text(encoding="utf-8")
        assert set(numbers) <= set(re.findall(r"\d+\.\d+", text)), form
        assert "Phantom" in text


def test_html_needs_no_other_file(runs, tmp_path):
    write_report(runs, tmp_path, PHANTOM_GRAPH, "A & B")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert base64.b64encode(b"picture 0").decode() in text
    assert "http" not in text
    assert "A &amp; B" in text
    assert "Counterfactuals: Soft-CFT" in text
    assert "seed: 1  # &lt;&amp;&gt;" in text
    assert "torch" in text


def test_latex_escapes(runs, tmp_path):
    write_report(runs, tmp_path, PHANTOM_GRAPH, "Phantom")
    text = (tmp_path / "report.tex").read_text(encoding="utf-8")
    assert not set("↑↓·é²") & set(text)
    assert not re.search(r"(?<!\\)%(?!\n)", text.partition("\n")[2])


def test_what_the_guide_does_not_see_is_in_every_form(runs, tmp_path):
    row = ("sight", "real", "none", "sex", "guide", "auc", 0.558, 0.52, 0.6)
    results(row).to_csv(runs[0] / "metrics" / "sight.csv", index=False)
    write_report(runs, tmp_path / "report", PHANTOM_GRAPH, "title")
    for form in ("md", "tex", "html"):
        text = (tmp_path / "report" / f"report.{form}").read_text()
        assert "cannot change sex" in text
        assert "55.8" in text


def test_a_folder_without_results_is_named(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"elsewhere/metrics has no results.*evaluate\.py"):
        write_report([*runs, tmp_path / "elsewhere"], tmp_path / "out", PHANTOM_GRAPH, "Phantom")
    assert not (tmp_path / "out").exists()


def test_the_verdict_leads_and_every_part_is_in_the_contents(runs, tmp_path):
    lines = write_report(runs, tmp_path, PHANTOM_GRAPH, "Phantom")
    assert any("do(race)" in line for line in lines)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    order = [text.index(part) for part in ("<ul>", "<table class=verdict", "base64", "<div class=scroll>", "<pre>")]
    assert order == sorted(order)
    targets = re.findall(r'<h2 id="(\w+)"', text)
    assert re.findall(r'href="#(\w+)"', text) == targets
    assert text.count("<table") == text.count("<div class=scroll><table") + text.count("<table class=verdict")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.index("do(race)") < markdown.index("| Intervention")


@pytest.mark.parametrize("note", [None, "Models are trained for a fifth."])
def test_a_run_by_rough_settings_is_not_called_trained_enough(runs, tmp_path, note):
    steps = [("training", "none", "none", "hvae", "", metric, 900, 900, 900) for metric in ("steps", "steps_planned")]
    results(*steps).to_csv(runs[0] / "metrics" / "training.csv", index=False)
    if note:
        (runs[0] / "metrics" / NOTES).write_text(json.dumps({SETTINGS: note, "Soft-CFT": "It went well."}))
    first = write_report([runs[0]], tmp_path, PHANTOM_GRAPH, "Phantom")[0]
    assert first.startswith("Trained enough? partly. " if note else "Trained enough? yes. ")
    assert (note or "") in first
    assert "went well" not in first
