import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest
import yaml

from softcft.run.plan import read_guidances
from softcft.training.cft_config import SolverConfig, given_settings
from softcft.training.config import TrainingConfig
from softcft.training.parsing import further_guides, parse_config, read_config, run_main, write_config

FILE = """
output_dir: runs
data: {resolution: 64}
graph:
  - {name: smoker, kind: binary, categories: [no, yes]}
hvae:
  learning_rate: 1e-3
  max_train_steps: 2e4
  mixed_precision: no
  report_to: null
  adam_beta2: 0
  max_grad_norm: .inf
  model: {z_dim: 16, beta: 5e-1}
cft:
evaluate: {bootstrap: 9, sets: [val, test]}
"""


@dataclass
class DataConfig:
    resolution: int = field(default=32, metadata={"help": "Edge of the square images in pixels."})
    augment: bool = field(default=False, metadata={"help": "Whether to crop at random."})


@dataclass
class EvaluateConfig:
    bootstrap: int = field(metadata={"help": "Resamples."})
    sets: list[str] = field(default_factory=lambda: ["test"], metadata={"help": "Splits."})
    level: Literal[90, 95] = field(default=95, metadata={"help": "Confidence, in 100% of cases."})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(FILE)
    return path


def parse(path, argv=(), section="hvae", types=(TrainingConfig, DataConfig)):
    return parse_config(section, *types, default_config=path, description="Train.\n\n  $ run", argv=argv)


def test_flags_override_the_section_which_overrides_the_defaults(path):
    config, training, data = parse(path, ["--max_train_steps", "10", "--resolution=128"])
    assert (training.max_train_steps, data.resolution) == (10, 128)
    assert (training.output_dir, training.learning_rate) == ("runs", 1e-3)
    assert (training.seed, data.augment) == (0, False)
    # The resolved dict holds the final values, each in its place.
    assert config["data"] == {"resolution": 128}
    assert (config["hvae"]["max_train_steps"], config["hvae"]["seed"]) == (10, 0)


def test_section_overrides_data(path):
    path.write_text("graph: []\ndata: {resolution: 64}\nhvae: {output_dir: x, resolution: 16}\n")
    assert parse(path)[2].resolution == 16


def test_scalars_follow_yaml_1_2_and_take_the_type_of_their_field(path):
    config, training, _ = parse(path)
    assert training.mixed_precision == "no"
    assert training.report_to is None
    assert training.max_train_steps == 20_000
    assert isinstance(training.max_train_steps, int)
    assert isinstance(training.adam_beta2, float)
    assert training.max_grad_norm == math.inf
    assert config["graph"][0]["categories"] == ["no", "yes"]
    assert config["hvae"]["model"] == {"z_dim": 16, "beta": 0.5}


def test_codes_dates_and_times_are_words(path):
    words = ["007", "12:30", "2020-01-01", "1_000"]
    path.write_text(
        f"graph: [{{name: site, categories: [{', '.join(words)}, 10, -3, 1e3, 2.]}}]\nhvae: {{output_dir: x}}"
    )
    assert parse(path)[0]["graph"][0]["categories"] == [*words, 10, -3, 1000.0, 2.0]


def test_a_saved_file_reads_as_what_was_saved(tmp_path):
    values = ["1e3", "007", "10", "no", "true", ".5", "2020-01-01", 10, 1e3, 1e-7, True, None, "", "~", math.inf]
    write_config({"graph": values, "data": {}, "hvae": {}}, tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("hvae: {}", "hvae: {output_dir: x}"))
    read = parse(path)[0]["graph"]
    assert read == values
    assert [type(value) for value in read] == [type(value) for value in values]


def test_resolved_config_repeats_the_run(path, tmp_path):
    first = parse(path, ["--learning_rate", "1e-5", "--augment", "true"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(first[0]))
    assert parse(path, ["--config", str(resolved)]) == first


@pytest.mark.parametrize("scale", [2.5, {"sex": 2.0, 'it\'s "so" = high, or: {low}': 0.5}])
def test_guidance_is_a_number_or_a_weight_per_variable_in_files_flags_and_runs(path, tmp_path, scale):
    flags = read_guidances({"mine": {"guidance_scale": scale}}, tmp_path)["mine"]
    place = flags.index("--guidance_scale")
    config, given, _ = parse(path, flags[place : place + 2], "cft", (SolverConfig, DataConfig))
    assert given_settings(given) == {"guidance_scale": scale}
    (resolved := tmp_path / "resolved.yaml").write_text(yaml.safe_dump(config))
    assert parse(resolved, [], "cft", (SolverConfig, DataConfig))[1] == given
    for wrong in ("two", "{sex: 2", "{sex: -2}", "[2]", "nan"):
        with pytest.raises(ValueError, match="guidance_scale"):
            parse(path, ["--guidance_scale", wrong], "cft", (SolverConfig, DataConfig))


def test_guides_are_a_list(path, tmp_path):
    path.write_text("graph: []\ndata: {output_dir: x}\nguides: [{seed: 1}, {seed: 2}, {seed: 3}]\n")
    read = {role: parse(path, section=role) for role in ("guide", "guide_2", "guide_3")}
    assert [training.seed for _, training, _ in read.values()] == [1, 2, 3]
    config = read["guide"][0]
    assert further_guides(config) == ["guide_2", "guide_3"]
    write_config(config, tmp_path)
    assert read_config(tmp_path / "config.yaml") == config  # which has a section for each


@pytest.mark.parametrize(
    "text", ["guides: {seed: 1}", f"guides: {10 * [{}]}", "guides: [{}]\nguide: {}", "guides: [{}, {}]\nguide_2: {}"]
)
def test_guides_that_are_no_list_or_given_twice_are_refused(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"toy.yaml: guides .*"):
        read_config(path)


@pytest.fixture
def base(path, tmp_path):
    """A file whose base has other settings, another graph and two guides."""
    tmp_path.joinpath("base.yaml").write_text(
        "data: {sample_size: 32, data_seed: 1}\ngraph: [a]\ncolumns: {a: A}\nguides: [{seed: 1}, {seed: 2}]\n"
        "hvae: {seed: 3, model: {z_dim: 1, beta: 2}}\n"
    )
    return lambda text: path.write_text(f"base: base.yaml\n{text}") and read_config(path)


def test_a_file_has_what_it_says_and_else_what_its_base_says(base):
    config = base("data: {sample_size: 16}\nhvae: {model: {z_dim: 4}}\nscm: {seed: 5}\n")
    assert config["data"] == {"sample_size": 16, "data_seed": 1}
    assert config["hvae"] == {"seed": 3, "model": {"z_dim": 4}}
    assert config["scm"] == {"seed": 5}
    assert (config["graph"], config["columns"], config["guide_2"]) == (["a"], {"a": "A"}, {"seed": 2})
    assert "base" not in config


def test_columns_of_a_base_belong_to_its_graph(base):
    assert base("graph: [b]\n")["graph"] == ["b"]
    assert "columns" not in base("graph: [b]\n")


def test_rows_of_a_base_belong_to_its_graph(tmp_path):
    (tmp_path / "rows.yaml").write_text("graph: [a]\nrows: {view: PA}\n")
    (tmp_path / "other.yaml").write_text("base: rows.yaml\n")
    assert read_config(tmp_path / "other.yaml")["rows"] == {"view": "PA"}
    (tmp_path / "other.yaml").write_text("base: rows.yaml\ngraph: [b]\n")
    assert "rows" not in read_config(tmp_path / "other.yaml")


def test_guides_replace_all_those_of_the_base(base):
    config = base("guides: [{seed: 9}]\n")
    assert config["guide"] == {"seed": 9}
    assert "guide_2" not in config


@pytest.mark.parametrize("name", ["missing.yaml", "toy.yaml", "[base.yaml]", "sub"])
def test_a_base_that_is_no_other_file_is_refused(path, tmp_path, name):
    tmp_path.joinpath("sub").mkdir()
    path.write_text(f"base: {name}\n")
    with pytest.raises((FileNotFoundError, ValueError), match="base"):
        read_config(path)


def test_further_guides_are_in_the_order_of_their_numbers():
    assert further_guides(["guide_9", "guide", "guide_2", "hvae"]) == ["guide_2", "guide_9"]


def test_required_field_comes_from_the_file_or_is_asked_for(path, capsys):
    _, evaluate, _ = parse(path, section="evaluate", types=(EvaluateConfig, DataConfig))
    assert (evaluate.bootstrap, evaluate.sets, evaluate.level) == (9, ["val", "test"], 95)
    path.write_text("graph: []\ncft:\n")
    with pytest.raises(SystemExit):
        parse(path, section="cft")
    assert "--output_dir" in capsys.readouterr().err


def test_a_graph_of_its_own_replaces_that_of_the_file(path, tmp_path):
    path.write_text(FILE + "columns: {smoker: cigarettes}\n")
    assert parse(path)[0]["columns"] == {"smoker": "cigarettes"}
    graph = tmp_path / "graph.yaml"
    for text in ("- {name: age}", "graph: [{name: age}]"):
        graph.write_text(text)
        config, *_ = parse(path, ["--graph", str(graph)])
        assert config["graph"] == [{"name": "age"}]
        assert config["columns"] == {}  # they were those of the other graph
    graph.write_text("graph: [{name: age}]\ncolumns: {age: {column: years, values: {0: null}}}")
    assert parse(path, ["--graph", str(graph)])[0]["columns"] == {"age": {"column": "years", "values": {0: None}}}


def test_rows_travel_with_the_columns_and_are_saved(path, tmp_path):
    path.write_text(FILE + "columns: {smoker: cigarettes}\nrows: {view: [PA, AP]}\n")
    config = parse(path)[0]
    assert config["columns"] == {"smoker": "cigarettes", "rows": {"view": ["PA", "AP"]}}
    write_config(config, tmp_path / "run")
    assert parse(tmp_path / "run" / "config.yaml")[0] == config
    graph = tmp_path / "graph.yaml"
    graph.write_text("graph: [{name: age}]")
    assert parse(path, ["--graph", str(graph)])[0]["columns"] == {}
    graph.write_text("graph: [{name: age}]\nrows: {site: 1}")
    assert parse(path, ["--graph", str(graph)])[0]["columns"] == {"rows": {"site": 1}}


@pytest.mark.parametrize(
    ("text", "named"),
    [("- [", "YAML"), ("variables: []", "'variables'"), ("graph: []\nhvae: {}", "'hvae'"), ("age", "'age'")],
)
def test_a_graph_that_is_none_is_refused(path, tmp_path, text, named):
    graph = tmp_path / "graph.yaml"
    graph.write_text(text)
    with pytest.raises(ValueError, match=f"graph.yaml .*{named}"):
        parse(path, ["--graph", str(graph)])
    with pytest.raises(FileNotFoundError, match=r"--graph nowhere\.yaml"):
        parse(path, ["--graph", "nowhere.yaml"])


@dataclass
class NamedConfig:
    dataset_name: str = field(default="toy", metadata={"help": "Data set."})
    seed: int = field(default=0, metadata={"help": "Seed."})


@pytest.mark.parametrize(
    ("flags", "seed"),
    [
        ([], 1),
        (["--dataset_name", "shipped"], 2),  # a data set that comes with settings
        (["--dataset_name", "owner/shipped"], 3),  # one of the Hub
        (["--dataset_name=../shipped"], 3),
        (["--dataset_name", "shipped", "--config", "FILE"], 1),
    ],
)
def test_without_a_config_the_settings_are_those_of_the_data_set(tmp_path, flags, seed):
    for i, name in enumerate(("toy", "shipped", "own_data"), start=1):
        (tmp_path / f"{name}.yaml").write_text(f"graph: []\nhvae: {{seed: {i}}}\n")
    toy = tmp_path / "toy.yaml"
    argv = [flag.replace("FILE", str(toy)) for flag in flags]
    assert parse(toy, argv, types=(NamedConfig,))[1].seed == seed


@pytest.mark.parametrize(("flags", "seed"), [([], 1), (["--preset", "standard"], 1), (["--preset=quick"], 2)])
def test_own_data_have_presets(tmp_path, flags, seed):
    for i, name in enumerate(("own_data", "own_data_quick", "shipped"), start=1):
        (tmp_path / f"{name}.yaml").write_text(f"graph: []\nhvae: {{seed: {i}}}\n")
    default, own = tmp_path / "shipped.yaml", ["--dataset_name", "pictures"]
    assert parse(default, [*own, *flags], types=(NamedConfig,))[1].seed == seed
    for others in [], ["--dataset_name", "shipped"], [*own, "--config", str(default)]:
        if flags:
            with pytest.raises(ValueError, match="--preset"):
                parse(default, [*others, *flags], types=(NamedConfig,))


def test_the_folder_of_the_run_is_one_for_all_sections(path, tmp_path):
    config, training, _ = parse(path, ["--output_dir", "elsewhere"])
    assert training.output_dir == config["output_dir"] == "elsewhere"
    assert "output_dir" not in config["hvae"]


def test_help_teaches(path, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(path, ["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "Train.\n\n  $ run" in text
    shown = " ".join(text.split())
    assert f"(default: {path}; with" in shown.replace("- ", "-")  # argparse breaks long paths at hyphens
    assert "Peak learning rate of AdamW" in shown
    assert "at max_train_steps along a cosine. (default: constant_with_warmup)" in shown
    assert "skipped ones included. (default: 20000)" in shown  # from the file, not from the class
    assert "default: None" not in shown
    flags = re.findall(r"(?m)^  (?:-h, )?--([\w-]+)", text)
    assert not any("-" in flag for flag in flags)  # one spelling of each
    assert len(flags) == len(set(flags))
    group = text.partition("\nSettings of the training loop")[2].partition("\n\n")[0]
    own = [field.name for field in fields(TrainingConfig)]
    assert re.findall(r"(?m)^  --(\w+)", group) == own


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hvae: [1, 2]", "'hvae' .*1, 2"),
        ("- hvae", "'hvae'"),
        ("hvae: {a: [}", "YAML"),
        ("hvea: {}", "'hvea'.*'hvae'"),
        ("zzz: {}", "'zzz'"),
        ("hvae: {output_dir: x}", "'graph'"),
        ("cft: {}\ndata: {}", "no section 'hvae'"),
        ("hvae: {lerning_rate: 1}", "'lerning_rate' .*'hvae'.*'learning_rate'"),
        ("hvae: {}\ndata: {model: {}}", "'model' .*'data'"),
        ("hvae: {model: 3}", "hvae.model .*3"),
        ("hvae: {seed: 1.5}", "hvae.seed .*1.5"),
        ("hvae: {seed: .inf}", "hvae.seed .*inf"),
        ("hvae: {seed: true}", "hvae.seed .*True"),
        ("hvae: {learning_rate: '1e-3'}", "hvae.learning_rate .*'1e-3'"),
        ("hvae: {learning_rate: }", "hvae.learning_rate .*None"),
        ("hvae: {output_dir: 7}", "hvae.output_dir .*7"),
        ("hvae: {mixed_precision: fp8}", "hvae.mixed_precision .*'bf16'.*'fp8'"),
        ("hvae: {report_to: paper}", "hvae.report_to .*'paper'"),
        ("hvae: {}\ndata: {augment: 1}", "data.augment .*1"),
    ],
)
def test_mistakes_in_the_file_are_named(path, text, named):
    path.write_text(text)
    with pytest.raises(ValueError, match=f"toy.yaml.*{named}"):
        parse(path)


def test_mistakes_in_lists_and_ranges_are_named(path):
    path.write_text("evaluate: {bootstrap: 1, sets: [val, 3]}\ngraph: []\nhvae: {output_dir: x, learning_rate: -1}")
    with pytest.raises(ValueError, match=r"evaluate.sets .*3"):
        parse(path, section="evaluate", types=(EvaluateConfig,))
    with pytest.raises(ValueError, match=r"--learning_rate .*-1"):
        parse(path)


def test_missing_file_and_unknown_flag_are_named(path):
    with pytest.raises(FileNotFoundError, match=r"--config .*nowhere.yaml"):
        parse(path, ["--config", str(path.with_name("nowhere.yaml"))])
    with pytest.raises(ValueError, match=r"'--lerning_rate'.*'--learning_rate'"):
        parse(path, ["--lerning_rate=1"])
    with pytest.raises(ValueError, match="'--max_train'"):  # no abbreviations
        parse(path, ["--max_train", "1"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, 0)
            for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "logging_steps")
        ),
        *((name, -1) for name in ("seed", "lr_warmup_steps", "checkpointing_steps", "checkpoints_total_limit")),
        ("dataloader_num_workers", -1),
        *((name, value) for name in ("adam_beta1", "adam_beta2", "ema_decay") for value in (1.0, -0.1, math.nan)),
        *((name, value) for name in ("max_grad_norm", "skip_grad_norm", "learning_rate") for value in (0, math.nan)),
        ("learning_rate", math.inf),
        ("adam_weight_decay", -1.0),
        ("adam_weight_decay", math.inf),
        ("lr_scheduler", "linear"),
        ("mixed_precision", "fp8"),
        ("report_to", "paper"),
        ("output_dir", ""),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value!r}\.$"):
        TrainingConfig(**{"output_dir": "runs/x", name: value})


def test_tracker_must_be_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"report_to wandb .* pip install wandb"):
        TrainingConfig(output_dir="x", report_to="wandb")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_errors_after_parsing_name_flags(path, kind):
    def main():
        parse(path)
        raise kind("max_train_steps of train_batch_size images are too few; x_max_train_steps")

    with pytest.raises(kind, match=r"^--max_train_steps of --train_batch_size images are too few; x_max_train_steps$"):
        run_main(main)
    with pytest.raises(OSError, match="max_train_steps") as caught:
        run_main(Path("max_train_steps").read_text)
    assert caught.value.filename == "max_train_steps"
