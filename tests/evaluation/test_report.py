import pandas as pd
import pytest

from softcft.evaluation.report import table1_markdown, write_table1

COLUMNS = ["dataset", "seed", "cft", "intervention", "variable", "predictor", "metric", "value", "baseline"]


def results(*rows):
    df = pd.DataFrame(rows, columns=COLUMNS)
    return df.assign(change=df["value"] - df["baseline"])


def small(seed=0, cft="soft", predictor="guide", shift=0.0):
    """do(race) and do(sex) on two discrete variables and a continuous one."""
    return [
        ("toy", seed, cft, "race", "race", predictor, "auc", 98.7 + shift, 93.8),
        ("toy", seed, cft, "race", "sex", predictor, "auc", 99.5 + shift, 99.6),
        ("toy", seed, cft, "race", "age", predictor, "mae", 5.25 + shift, 5.0),
        ("toy", seed, cft, "sex", "race", predictor, "auc", 93.76 + shift, 93.8),
        ("toy", seed, cft, "sex", "sex", predictor, "auc", 99.7 + shift, 99.6),
        ("toy", seed, cft, "sex", "age", predictor, "mae", 4.9 + shift, 5.0),
    ]


def test_layout_of_the_paper():
    df = results(*small(cft="soft"), *small(cft="none", shift=-1.0))
    assert table1_markdown(df, units={"age": "years"}) == (
        "### toy, predictor: guide\n"
        "\n"
        "AUC in % on counterfactual images, in round brackets the change from real images.\n"
        "\n"
        "| Intervention | CF type | Race | Sex |\n"
        "| --- | --- | --- | --- |\n"
        "| None | Real images | 93.8 | 99.6 |\n"
        "| do(race) | No CFT | 97.7 (↑ 3.9) | 98.5 (↓ 1.1) |\n"
        "|  | Soft-CFT | 98.7 (↑ 4.9) | 99.5 (↓ 0.1) |\n"
        "| do(sex) | No CFT | 92.8 (↓ 1.0) | 98.7 (↓ 0.9) |\n"
        "|  | Soft-CFT | 93.8 (· 0.0) | 99.7 (↑ 0.1) |\n"
        "\n"
        "Mean absolute error on counterfactual images, in round brackets the change from real images.\n"
        "\n"
        "| Intervention | CF type | Age (years) |\n"
        "| --- | --- | --- |\n"
        "| None | Real images | 5.00 |\n"
        "| do(race) | No CFT | 4.25 (↓ 0.75) |\n"
        "|  | Soft-CFT | 5.25 (↑ 0.25) |\n"
        "| do(sex) | No CFT | 3.90 (↓ 1.10) |\n"
        "|  | Soft-CFT | 4.90 (↓ 0.10) |\n"
    )


def test_several_seeds_show_mean_and_range():
    markdown = table1_markdown(results(*small(seed=0), *small(seed=1, shift=0.2)))
    assert "Mean over 2 seeds, smallest and largest value in square brackets." in markdown
    assert "| do(race) | Soft-CFT | 98.8 [98.7, 98.9] (↑ 5.0) |" in markdown
    assert "| None | Real images | 93.8 [93.8, 93.8] | 99.6 [99.6, 99.6] |" in markdown


def test_each_data_set_and_predictor_has_its_own_table():
    judge = [("other", *row[1:]) for row in small(predictor="judge")]
    headings = [line for line in table1_markdown(results(*small(), *judge)).splitlines() if line.startswith("#")]
    assert headings == ["### toy, predictor: guide", "### other, predictor: judge"]


def test_a_result_that_is_missing_shows_as_such():
    assert "|  | Soft-CFT | 98.7 (↑ 4.9) | - |" in table1_markdown(
        results(*small(cft="none"), *[row for row in small() if row[4] != "sex"])
    )


@pytest.mark.parametrize(
    ("df", "message"),
    [
        (results(*small()).drop(columns="seed"), r"lacks the columns \['seed'\]"),
        (results(), "no rows"),
        (results(*small(cft="firm")), r"df\['cft'\] must be one of .* got \['firm'\]"),
        (results(*small(), *small()), "more than one result for .*'variable': 'race'"),
        (results(*small(), *[(*row[:-1], 80.0) for row in small(cft="hard")]), "baselines of .* differ"),
    ],
    ids=["column", "empty", "cft", "twice", "baseline"],
)
def test_results_that_cannot_be_shown_are_refused(df, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_table1(df, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_write_table1_keeps_all_results(tmp_path):
    df = results(*small())
    write_table1(df, tmp_path / "new" / "folder", units={"age": "years"})
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "folder" / "table1.csv"), df)
    written = (tmp_path / "new" / "folder" / "table1.md").read_text(encoding="utf-8")
    assert written == table1_markdown(df, units={"age": "years"})
