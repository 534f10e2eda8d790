"""What a stranger's files must not do: run code, lead out of their folder, fill the memory, forge a report."""

import io
import json
import pickle
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image
from safetensors.torch import load_file

from softcft import (
    AttributeClassifier,
    AttributeSCM,
    CausalGraph,
    DiffusionDSCMPipeline,
    DSCMPipeline,
    HVAEModel,
    ParentEncoder,
    Variable,
)
from softcft.convert import load_checkpoint
from softcft.data.config import DataConfig
from softcft.data.own import read_table
from softcft.data.paths import check_paths
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.data.report import check_data
from softcft.data.sources import load_data
from softcft.evaluation.figures.grids import example_grid
from softcft.evaluation.report import write_report
from softcft.evaluation.tables import COLUMNS
from softcft.models.networks import load_network
from softcft.models.weights import load_safetensors
from softcft.pipelines.query import load_pipeline
from softcft.training.parsing import read_config
from tests.pipelines import test_diffusion_dscm, test_dscm

SIZE = 8
AGES = CausalGraph([Variable(name="age", kind="continuous", low=0, high=100)])
WEIGHTS = "diffusion_pytorch_model"


class Payload:
    """Makes a file where it is unpickled plainly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that every payload would make; the payload works where nobody takes care."""
    works = tmp_path / "works"
    pickle.loads(pickle.dumps(Payload(works)))
    assert works.exists()
    return tmp_path / "ran"


def torch_file(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# ---- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    vae = test_diffusion_dscm.make_vae()
    made = {"hvae": test_dscm.build(), "diffusion": test_diffusion_dscm.build(vae=vae)}
    for name, pipeline in made.items():
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in made}


PARTS: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("hvae", "hvae", HVAEModel.from_pretrained),
    ("hvae", "attribute_scm", AttributeSCM.from_pretrained),
    ("hvae", "classifier", AttributeClassifier.from_pretrained),
    ("diffusion", "parent_encoder", ParentEncoder.from_pretrained),
    ("diffusion", "unet", load_network),
    ("diffusion", "vae", lambda folder: load_safetensors(AutoencoderKL, folder)),
]


@pytest.mark.parametrize(
    ("content", "name"),
    [("payload in a pickle", f"{WEIGHTS}.bin"), ("payload of torch", "model.pt"), ("honest weights", f"{WEIGHTS}.bin")],
)
@pytest.mark.parametrize(("pipeline", "part", "load"), PARTS, ids=[part for _, part, _ in PARTS])
def test_weights_in_a_pickle_are_refused_and_run_nothing(
    saved: dict[str, Path],
    pipeline: str,
    part: str,
    load: Callable[[Path], Any],
    name: str,
    content: str,
    ran: Path,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(saved[pipeline], tmp_path / "copy")
    load(folder / part)  # it loads as it was saved
    weights = folder / part / f"{WEIGHTS}.safetensors"
    honest = load_file(weights)
    weights.unlink()
    bad = {"payload in a pickle": pickle.dumps(Payload(ran)), "payload of torch": torch_file({"a": Payload(ran)})}
    (folder / part / name).write_bytes(bad.get(content) or torch_file(honest))
    refusal = rf"{part} has {name}, and no .safetensors: softcft reads no pickles.*recipes/convert_causal_gen\.py"
    with pytest.raises(ValueError, match=refusal):
        load(folder / part)
    pipeline_class = {"hvae": DSCMPipeline, "diffusion": DiffusionDSCMPipeline}[pipeline]
    with pytest.raises(ValueError, match=refusal):
        pipeline_class.from_pretrained(folder)
    with pytest.raises(ValueError, match=refusal):
        load_pipeline(folder, PHANTOM_GRAPH, 16)
    assert not ran.exists()


@pytest.mark.parametrize("part", ["hvae", "attribute_scm", "classifier"])
def test_the_pipeline_of_diffusers_reads_no_pickle_of_ours_either(
    saved: dict[str, Path], part: str, ran: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["hvae"], tmp_path / "copy")
    (folder / part / f"{WEIGHTS}.safetensors").rename(folder / part / f"{WEIGHTS}.bin")
    with pytest.raises(ValueError, match=f"{part} has {WEIGHTS}.bin, and no .safetensors"):
        DiffusionPipeline.from_pretrained(folder)
    assert not ran.exists()


def test_a_pickle_beside_safetensors_is_not_read(saved: dict[str, Path], ran: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["hvae"], tmp_path / "copy")
    (folder / "hvae" / f"{WEIGHTS}.bin").write_bytes(pickle.dumps(Payload(ran)))
    assert DSCMPipeline.from_pretrained(folder).hvae.causal_graph == PHANTOM_GRAPH
    assert not ran.exists()


def test_nobody_can_ask_for_a_pickle(saved: dict[str, Path]) -> None:
    for load in (DSCMPipeline.from_pretrained, HVAEModel.from_pretrained):
        with pytest.raises(ValueError, match="use_safetensors"):
            load(saved["hvae"], use_safetensors=False)


def test_the_converter_runs_no_code_of_a_checkpoint(ran: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for content in (
        pickle.dumps(Payload(ran), protocol=2),
        torch_file(Payload(ran)),
        torch_file({"ema_model_state_dict": {}, "hparams": Payload(ran)}),
        torch_file({"ema_model_state_dict": {"a": Payload(ran)}, "hparams": {}}),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint.pt cannot be read .* would run code from the file"):
            load_checkpoint(path)
        assert not ran.exists()


# ---- code beside models and data ------------------------------------------------------------------------------------


def test_code_beside_a_model_does_not_run(saved: dict[str, Path], ran: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["hvae"], tmp_path / "copy")
    code = f"open({str(ran)!r}, 'w')\nfrom softcft import DSCMPipeline as Mine, HVAEModel\n"
    for path in ("pipeline.py", "mine.py", "hvae/mine.py", "hvae/hvae.py"):
        (folder / path).write_text(code)
    for loading_class in (DSCMPipeline, DiffusionPipeline):  # files that nothing names are not looked at
        assert type(loading_class.from_pretrained(folder)) is DSCMPipeline
    index = json.loads((folder / "model_index.json").read_text())
    for change in ({"_class_name": ["mine", "Mine"]}, {"hvae": ["mine", "HVAEModel"]}):
        (folder / "model_index.json").write_text(json.dumps(index | change))
        for loading_class in (DSCMPipeline, DiffusionPipeline):
            with pytest.raises(ValueError, match=r"contains custom code in mine\.py which must be executed"):
                loading_class.from_pretrained(folder)
        with pytest.raises(ValueError, match="Pass `trust_remote_code=True`"):
            load_pipeline(folder, PHANTOM_GRAPH, 16)
    (folder / "model_index.json").write_text(json.dumps(index | {"hvae": ["os", "system"]}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        DSCMPipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "hvae" / "softcft.py").write_text(code)  # it has the name of the library that the index names
    with pytest.raises(ValueError, match=r"contains custom code in softcft\.py which must be executed"):
        DSCMPipeline.from_pretrained(folder)
    assert not ran.exists()
    assert "mine" not in sys.modules


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_script_in_a_folder_of_data_does_not_run(is_streamed: bool, ran: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine", ["0.png"])
    code = f"open({str(ran)!r}, 'w')\nimport datasets\nclass Mine(datasets.GeneratorBasedBuilder): pass\n"
    (folder / "mine.py").write_text(code)
    assert len(list(read_table(str(folder), streaming=is_streamed)["train"])) == 1
    assert not ran.exists()


def test_no_source_asks_for_remote_code() -> None:
    """The flag is the user's: library and recipes never set it, but to refuse."""
    root = Path(__file__).parents[1]
    for path in [*root.glob("softcft/**/*.py"), *root.glob("recipes/**/*.py")]:
        asked = path.read_text(encoding="utf-8").replace("trust_remote_code=False", "")
        assert "trust_remote_code" not in asked, path


# ---- pickles in data ------------------------------------------------------------------------------------------------


def picture(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_folder(folder: Path, names: list[str]) -> Path:
    """A picture, and a table that has it and files of these names."""
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(picture())
    lines = [json.dumps({"file_name": name, "age": i}) for i, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def numpy_file(payload: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([payload], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("extension", ["pickle", "pkl", "pyd", "pt", "pth", "npy", "npz"])
def test_pickles_in_webdataset_archives_are_not_unpickled(
    extension: str, is_streamed: bool, ran: Path, tmp_path: Path
) -> None:
    forms = {"pt": torch_file, "pth": torch_file, "npy": numpy_file, "npz": numpy_file}
    evil = forms.get(extension, pickle.dumps)(Payload(ran))
    make_tar(tmp_path / "mine" / "train.tar", {"0.png": picture(), "0.json": b'{"age": 1}', f"0.{extension}": evil})
    if extension in ("pth", "npy", "npz"):
        with pytest.raises(ValueError, match="mine cannot be read: "):
            read_table(str(tmp_path / "mine"), streaming=is_streamed)
    else:
        rows = read_table(str(tmp_path / "mine"), streaming=is_streamed)["train"]
        assert next(iter(rows))[extension] == evil  # the plain bytes
    assert not ran.exists()


@pytest.mark.parametrize("name", ["train.pt", "train.pkl", "train.pickle", "train.npy", "train.pkl.gz"])
def test_a_folder_of_pickles_is_no_data_set(name: str, ran: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(ValueError, match="cannot be read: "):
        read_table(str(tmp_path / "mine"))
    assert not ran.exists()


# ---- paths that lead out --------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret.png").write_bytes(picture(200))
    return tmp_path / "secret.png"


def settings(folder: Path, tmp_path: Path, **others: Any) -> DataConfig:
    numbers = {"num_validation": 1, "num_test": 1}
    return DataConfig(dataset_name=str(folder), data_dir=str(tmp_path / "cache"), sample_size=SIZE, **numbers | others)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "{secret}", "file://{secret}", "..\\secret.png"]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_of_pictures_cannot_lead_out_of_its_folder(
    kind: str, name: str, is_streamed: bool, secret: Path, tmp_path: Path
) -> None:
    name = name.format(secret=secret)
    folder = make_folder(tmp_path / "mine", ["0.png", name])
    if kind != "jsonl":
        (folder / "metadata.jsonl").unlink()
        table = pd.DataFrame({"file_name": ["0.png", name], "age": [0, 1]})
        table.to_csv(folder / "metadata.csv", index=False) if kind == "csv" else table.to_parquet(
            folder / "metadata.parquet"
        )
    row = {"csv": "line 3", "jsonl": "line 2", "parquet": "row 1"}[kind]
    with pytest.raises(
        ValueError, match=f"metadata.{kind}, {row}: the picture .*secret.png' is not in the folder"
    ) as e:
        read_table(str(folder), streaming=is_streamed)
    assert repr(name) in str(e.value)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "path", ["{secret}", "../secret.png", "file://{secret}", "http://localhost/secret.png", "zip://a::{secret}"]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_of_paths_cannot_lead_out_of_the_folder(
    kind: str, path: str, is_streamed: bool, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "csv" and is_streamed:
        pytest.skip("datasets streams no CSV without its columns")
    path = path.format(secret=secret)
    folder = make_folder(tmp_path / "mine", [])
    (folder / "metadata.jsonl").unlink()
    monkeypatch.chdir(folder)  # where "../secret.png" is the secret, and nothing with an address is a file
    inside = str(folder / "0.png")
    if kind == "csv":
        pd.DataFrame({"image": [*[inside] * 4, path], "age": range(5)}).to_csv(folder / "train.csv", index=False)
    else:
        images = [{"bytes": picture(), "path": "elsewhere/0.png"}] * 4 + [{"bytes": None, "path": path}]
        schema = datasets.Features({"image": datasets.Image(), "age": datasets.Value("int64")}).arrow_schema
        table = pa.Table.from_pydict({"image": images, "age": list(range(5))}, schema=schema)
        pq.write_table(table, folder / "train.parquet")  # datasets itself would put the picture into the file
    (folder / "0.png").rename(folder / "picture")
    pattern = rf"{folder}, row \d: the picture .*{path[-10:]}' is not in this data set"
    with pytest.raises(ValueError, match=pattern):
        load_data(settings(folder, tmp_path, streaming=is_streamed), AGES)
    if not is_streamed:
        report = check_data(read_table(str(folder)), settings(folder, tmp_path), AGES)
        assert any("the picture" in error and repr(path) in error for error in report.errors)


def test_a_data_set_of_the_hub_has_its_own_pictures_only(secret: Path) -> None:
    cache = Path(HF_HUB_CACHE, "datasets--owner--name", "snapshots", "1", "0.png")
    address = "hf://datasets/owner/name@1/0.png"
    own = [str(cache), address, f"zip://0.png::{address}", str(datasets.config.DOWNLOADED_DATASETS_PATH / "0.png")]
    check_paths(Dataset.from_dict({"image": own}), "image", "owner/name")
    other = cache.parents[3] / "datasets--owner--other" / "0.png"
    for path in (str(secret), str(other), address.replace("name", "name2"), "https://host/0.png", f"file://{cache}"):
        with pytest.raises(ValueError, match=r"owner/name, row 4: the picture .* is not in this data set"):
            check_paths(Dataset.from_dict({"image": [*own, path]}), "image", "owner/name")


def test_a_readme_cannot_name_files_elsewhere(secret: Path, tmp_path: Path) -> None:
    for i, files in enumerate((str(secret), "../secret.png", "../*.png")):
        folder = make_folder(tmp_path / f"mine{i}", ["0.png"])
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: '{files}'\n---\n")
        with pytest.raises(ValueError, match=r"its README.md names the file .*secret.png, which is elsewhere"):
            read_table(str(folder))


def test_members_of_archives_stay_inside(secret: Path, tmp_path: Path) -> None:
    """Names in an archive are names: what they say is neither read nor written."""
    make_tar(tmp_path / "tar" / "train.tar", {"../../evil/0.png": picture(7), "../../evil/0.json": b'{"age": 1}'})
    (row,) = read_table(str(tmp_path / "tar"))["train"]
    assert row["png"].getpixel((0, 0)) == 7
    (tmp_path / "links").mkdir()
    with tarfile.open(tmp_path / "links" / "train.tar", "w") as archive:
        for name, target in (("0.png", str(secret)), ("1.png", None), ("1.json", None)):
            info = tarfile.TarInfo(name)
            content = picture(7) if name == "1.png" else b'{"age": 1}'
            if target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, target
            info.size = 0 if target is not None else len(content)
            archive.addfile(info, io.BytesIO(content))
    assert [row["png"].getpixel((0, 0)) for row in read_table(str(tmp_path / "links"))["train"]] == [7]
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(tmp_path / "zip" / "train.zip", "w") as archive:
        archive.writestr("metadata.jsonl", '{"file_name": "../../secret.png", "age": 1}\n')
        archive.writestr("0.png", picture())
    with pytest.raises(ValueError, match=r"cannot be read: .*\.\./\.\./secret\.png"):
        read_table(str(tmp_path / "zip"))
    assert not list(tmp_path.rglob("evil"))


def test_links_are_followed_and_counted(secret: Path, tmp_path: Path) -> None:
    """Clusters keep pictures in a store, and the cache of the Hub is made of links."""
    folder = make_folder(tmp_path / "store" / "mine", [f"{i}.png" for i in range(6)])
    for i in range(1, 6):
        (folder / f"{i}.png").symlink_to(folder / "0.png" if i < 5 else secret)
    (tmp_path / "root").symlink_to(folder)
    for root in (folder, tmp_path / "root"):
        splits = load_data(settings(root, tmp_path), AGES)
        assert sum(len(rows) for rows in splits.values()) == 6
        report = check_data(read_table(str(root)), settings(root, tmp_path), AGES)
        (warning,) = [text for text in report.warnings if "are links" in text]
        assert warning.startswith("1 pictures are links out of the folder")
        assert f"to {secret}" in warning


# ---- YAML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch ran']", "!!python/object/new:os.system ['touch ran']",
     "!!python/name:os.system", "!!python/module:os"],
)  # fmt: skip
def test_yaml_runs_nothing(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.yaml").write_text(f"graph: {tag}\n")
    with pytest.raises(ValueError, match=r"evil.yaml is not valid YAML: could not determine a constructor"):
        read_config(Path("evil.yaml"))
    assert not Path("ran").exists()


def laughs(alias: str, depth: int = 40) -> str:
    lines = ["a0: &a0 {k: [lol, lol]}"]
    lines += [f"a{i}: &a{i} " + alias.format(i - 1) for i in range(1, depth)]
    return "graph:\n" + "".join(f"  {line}\n" for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        laughs("{{l: *a{0}, r: *a{0}}}"),
        laughs("[*a{0}, *a{0}, *a{0}]"),
        laughs("{{<<: [*a{0}, *a{0}]}}"),
        "graph: &a [*a]\n",
        "graph: " + "[" * 1_000,
    ],
    ids=["mappings", "lists", "merges", "a loop", "depth"],
)
def test_yaml_that_grows_without_end_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"bomb.yaml (has more than 100,000 entries|is not valid YAML)") as error:
        read_config(path)
    assert len(str(error.value)) < 1_000
    assert time.process_time() - started < 10  # a bomb of this size would take years


def test_aliases_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "aliases.yaml"
    path.write_text("guide: &guide {learning_rate: 1e-3}\njudge: *guide\n")
    assert read_config(path) == {"guide": {"learning_rate": 0.001}, "judge": {"learning_rate": 0.001}}


def test_the_readme_of_a_data_set_is_no_bomb(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine", ["0.png"])
    (folder / "README.md").write_text(f"---\n{laughs('[*a{0}, *a{0}]', depth=30)}---\n")
    started = time.process_time()
    assert len(read_table(str(folder))["train"]) == 1
    assert time.process_time() - started < 10


# ---- names in reports -----------------------------------------------------------------------------------------------

NAMES = ("<script>alert(1)</script>", "a|b", "\\input{/etc/passwd}", "$x$ & $", "[x](http://y)", "a_b%c#d~e^f")


def test_names_are_text_in_every_form_of_a_report(tmp_path: Path) -> None:
    graph = CausalGraph([Variable(name=name, kind="binary", categories=("no", "yes")) for name in NAMES])
    rows = [
        ("effectiveness", "evil", 0, cft, intervention, name, "judge", "auc", 90.0, 89.0, 91.0, "image")
        for name in NAMES
        for cft, intervention in (("real", "none"), ("soft", name))
    ]
    run = tmp_path / NAMES[1]
    (run / "metrics").mkdir(parents=True)
    (run / "figures").mkdir()
    (run / "figures" / "<script>.png").write_bytes(b"picture")
    pd.DataFrame(rows, columns=COLUMNS).to_csv(run / "metrics" / "evaluation.csv", index=False)
    (run / "config.yaml").write_text(yaml.safe_dump({"graph": list(NAMES)}))
    title = "\n\\input{x} <script> | $"
    write_report([run], tmp_path / "out", graph, title)
    html, markdown, latex = (
        (tmp_path / "out" / f"report.{form}").read_text(encoding="utf-8") for form in ("html", "md", "tex")
    )
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "do(&lt;script&gt;alert(1)&lt;/script&gt;)" in html.partition("<table")[0]  # the verdict

    assert "<script" not in markdown
    assert "](http" not in markdown
    (table,) = [part for part in markdown.split("\n\n") if part.startswith("| Intervention")]
    columns = {len(line.replace("\\|", "").split("|")) for line in table.splitlines()}
    assert columns == {2 + len(NAMES) + 2}
    assert markdown.startswith("# \\\\input{x}") or markdown.startswith("#  \\\\input{x}")

    comment, body = latex.split("\n\n", 1)
    assert comment.startswith("%")
    assert "\n" not in comment
    for command in ("\\input", "$x$", "http://y)_", "a_b"):
        assert command not in body
    assert r"\textbackslash{}input\{/etc/passwd\}" in body
    assert r"\$x\$ \& \$" in body
    assert r"A\_b\%c\#d\textasciitilde{}e\textasciicircum{}f" in body
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in lines} == {1 + len(NAMES)}


def test_names_are_text_in_figures_and_in_the_check_of_the_data(tmp_path: Path) -> None:
    names = ["$\\frac{", "$\\input{x}$", *NAMES]
    figure = example_grid({name: torch.zeros(1, 1, 4, 4) for name in names}, {name: [name] for name in names})
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
    graph = CausalGraph([Variable(name=names[0], kind="binary", categories=tuple(names[1:3]))])
    folder = tmp_path / "mine"
    folder.mkdir()
    images = [{"bytes": picture(i), "path": None} for i in range(60)]
    rows = Dataset.from_dict({"image": images, names[0]: [names[1 + i % 2] for i in range(60)]})
    rows.cast_column("image", datasets.Image()).to_parquet(folder / "train.parquet")
    report = check_data(read_table(str(folder)), settings(folder, tmp_path, num_validation=20, num_test=20), graph)
    assert not report.errors
    assert f"{names[0]} (binary)" in report.lines
    assert {f"{names[0]}: {category}" for category in names[1:3]} <= set(report.examples)
