import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from softcft.data.phantom import PHANTOM_GRAPH
from softcft.evaluation.tables import COLUMNS
from tests.recipes.small_pipeline import load_recipe


def make_run(folder: Path, seed: int, settings: dict[str, dict[str, str]], auc: float) -> str:
    (folder / "metrics").mkdir(parents=True)
    row = ("effectiveness", "toy", seed, "real", "none", "sex", "judge", "auc", auc, auc - 1, auc + 1, "subject")
    pd.DataFrame([row], columns=COLUMNS).to_csv(folder / "metrics" / "evaluation.csv", index=False)
    (folder / "config.yaml").write_text(yaml.safe_dump({"graph": PHANTOM_GRAPH.to_list(), **settings}))
    return str(folder)


@pytest.mark.parametrize(
    "settings",
    [{"data": {"dataset_name": "toy"}, "evaluate": {}}, {"data": {}, "evaluate": {"dataset_name": "toy"}}],
    ids=["named in the file", "named by a flag"],
)
def test_runs_of_two_seeds_are_one_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, dict[str, str]]
) -> None:
    runs = [make_run(tmp_path / f"seed{seed}", seed, settings, auc) for seed, auc in enumerate((90.0, 94.0))]
    monkeypatch.setattr(sys, "argv", ["report.py", "--runs", *runs, "--output_dir", str(tmp_path / "all")])
    load_recipe("report").main()
    written = (tmp_path / "all" / "report.md").read_text()
    assert written.startswith("# softcft: toy")
    assert "| none | Real images | 92.0 |" in written
