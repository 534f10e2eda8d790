"""Turn a checkpoint of causal-gen (De Sousa Ribeiro et al., ICML 2023) into an HVAEModel.

    python recipes/convert_causal_gen.py checkpoint.pt outputs/converted/hvae
    python recipes/convert_causal_gen.py 15500_checkpoint.pt outputs/converted/hvae --architecture checkpoint.pt
    python recipes/convert_causal_gen.py checkpoint.pt outputs/converted/hvae --graph my_data.yaml

The moving average of the weights is converted. OUT_DIR is then what train_hvae.py would have made:

    hvae = HVAEModel.from_pretrained(OUT_DIR)

Attribute mechanisms and classifiers are trained anew, see train_scm.py and train_classifier.py.
"""

import argparse
from pathlib import Path

from softcft.training.parsing import read_config


def main() -> None:
    """Run the recipe; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="The file of causal-gen, of its image model or of its fine-tuning.")
    parser.add_argument("out_dir", help="Folder for the model; must not hold one already.")
    parser.add_argument(
        "--architecture",
        metavar="CHECKPOINT",
        help="For a checkpoint of fine-tuning, which does not say its architecture: that of the image model it began "
        "with.",
    )
    parser.add_argument(
        "--graph",
        metavar="YAML",
        help="File with a section 'graph': the parents of the image in their order. Left out, they must be those of "
        "Morpho-MNIST, MIMIC-CXR or UK Biobank, as causal-gen has them.",
    )
    arguments = parser.parse_args()
    out_dir = Path(arguments.out_dir)
    if (out_dir / "config.json").exists():
        raise SystemExit(f"{out_dir} holds a model already; give another folder or delete it.")
    # Here, once there is no mistake in the settings: it takes seconds.
    from softcft import CausalGraph
    from softcft.convert import NOT_CONVERTED, convert_hvae, load_checkpoint
    from softcft.training.checkpoints import save_whole

    graph = None
    try:
        if arguments.graph is not None:
            config = read_config(Path(arguments.graph))
            if "graph" not in config:
                raise ValueError(f"--graph {arguments.graph} has no section 'graph'; it has {sorted(config)}.")
            graph = CausalGraph(config["graph"])
        checkpoint = load_checkpoint(arguments.checkpoint)
        if arguments.architecture is not None:
            checkpoint = checkpoint._replace(hparams=load_checkpoint(arguments.architecture).hparams)
        model = convert_hvae(checkpoint, graph)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    save_whole(out_dir, model)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"Saved {parameters:,} parameters for {model.config.sample_size}x{model.config.sample_size} images and\n")
    print(f"{model.causal_graph}\n\nto {out_dir}. Load them by\n    HVAEModel.from_pretrained({str(out_dir)!r})")
    for prefix, what in NOT_CONVERTED.items():
        count = sum(name.startswith(prefix) for name in checkpoint.left_out)
        if count:
            print(f"Not converted: {count} tensors of {prefix.rstrip('.')}, {what}.")


if __name__ == "__main__":
    main()
