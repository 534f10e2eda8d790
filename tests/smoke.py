"""Whether softcft works with the packages that are installed: every recipe for a step, on a folder of pictures.

    make smoke

runs it with the lowest and with the newest versions that pyproject.toml allows. It needs nothing but softcft, and is no
part of the test suite, which runs with the versions of constraints.txt.
"""

import importlib.metadata
import os
import runpy
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (
    ["check_data"],
    ["train_scm"],
    ["train_classifier", "--role", "guide"],
    ["train_classifier", "--role", "judge"],
    ["train_classifier", "--role", "watcher"],
    ["train_hvae"],
    ["train_vae"],
    ["soft_cft", "--cft", "none"],
    ["soft_cft", "--cft", "matched", "--published", "true"],  # asks classifiers of one step, which see nothing
    ["evaluate", "--pipelines", "runs/none", "runs/matched"],
)


def dependencies() -> list[str]:
    """What pyproject.toml asks for."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


def lowest(pinned_torch: str) -> str:
    """The lowest versions that pyproject.toml allows, as constraints; torch is that of constraints.txt."""
    bounds = [entry.partition(",")[0].replace(">=", "==") for entry in dependencies()]
    return "\n".join([entry for entry in bounds if not entry.startswith("torch==")] + [pinned_torch]) + "\n"


def make_pictures(folder: Path) -> None:
    """A folder with metadata.csv, as users have it: numbers, words, a value that is missing, several of a patient."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    folder.mkdir()
    lines = ["file_name,patient,age,sex,race,disease"]
    for i in range(160):
        pixels = random.integers(0, 128, (20, 16), dtype="u1") + np.uint8(100 * (i // 2 % 2))  # the ill are brighter
        Image.fromarray(pixels).save(folder / f"picture {i}.png")
        sex, race = ("male", "female")[i % 2], ("White", "Asian", "Black")[i % 3]
        disease = ("no finding", "pleural effusion")[i // 2 % 2]
        lines.append(f"picture {i}.png,P{i // 2},{'' if i == 7 else 20 + i % 60},{sex},{race},{disease}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(name: str, *flags: str) -> None:
    """A recipe, in this process."""
    sys.argv = [f"{name}.py", *flags]
    try:
        runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise


def main() -> None:
    """See the module's docstring."""
    names = [entry.partition(">")[0] for entry in dependencies()]
    print("with", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names), flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HOME": temporary, "HF_HUB_OFFLINE": "1"}
        os.chdir(temporary)
        import yaml
        from PIL import Image

        from softcft import DSCMPipeline, example_model

        pipe = DSCMPipeline.from_pretrained(example_model())
        parents = {"age": 44.6, "sex": "male", "race": "White", "disease": "no finding"}
        result = pipe(Image.open(example_model() / "examples" / "0.png"), parents=parents, do={"sex": "female"})
        assert result.parents["sex"] == ["female"]
        result.images[0].save("female.png")

        make_pictures(Path("pictures"))
        config = yaml.safe_load((ROOT / "tests" / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
        config["data"] = {
            "dataset_name": "pictures",
            "sample_size": 16,
            "group_column": "patient",
            "num_validation": 40,
        }
        Path("settings.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        for name, *flags in RECIPES:
            steps = ["--max_train_steps", "1"] if "train" in name else []
            run(name, "--config", "settings.yaml", *flags, *steps)
        assert Path("runs/report.html").is_file()
        assert DSCMPipeline.from_pretrained("runs/matched").causal_graph
    print(f"All recipes ran, in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--lowest"]:
        print(lowest(sys.argv[2]), end="")
    else:
        main()
