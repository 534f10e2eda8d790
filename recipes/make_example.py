"""Make the pretrained pipeline that comes with softcft, from a run of the phantom; make example does both.

Writes the pipeline that was fine-tuned with soft labels, its networks in float16, and examples/: some test images with
their attributes (metadata.csv).
"""

import argparse
from pathlib import Path

MOST_BYTES = 5_000_000  # of weights in the package


def main() -> None:
    """Run the recipe; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run_dir", default="outputs/phantom_64", help="folder of a run of the phantom [%(default)s]")
    parser.add_argument("--num_images", type=int, default=8, help="number of test images [%(default)s]")
    arguments = parser.parse_args()
    if arguments.num_images < 1:
        parser.error(f"--num_images must be at least 1, got {arguments.num_images}.")
    run = Path(arguments.run_dir)
    if not (run / "soft" / "model_index.json").is_file():
        parser.error(f"--run_dir {run} has no pipeline in {run / 'soft'}; run make example.")

    # Here, once there is no mistake in the settings: it takes seconds.
    import torch

    from softcft import DSCMPipeline, example_model
    from softcft.data.examples import save_examples
    from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
    from softcft.data.schema import ImageAttributeDataset
    from softcft.training.checkpoints import save_whole

    pipeline = DSCMPipeline.from_pretrained(run / "soft")
    for network in (pipeline.hvae, pipeline.classifier):
        network.to(torch.float16)  # the SCM is tiny, and inverts its flows
    networks = (pipeline.hvae, pipeline.attribute_scm, pipeline.classifier)
    size = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())
    if size > MOST_BYTES:
        raise SystemExit(f"The weights have {size:,} bytes, more than the {MOST_BYTES:,} that the package may have.")

    folder = example_model()
    save_whole(folder, pipeline)
    number = arguments.num_images
    splits = load_phantom(pipeline.image_format.size, num_train=1, num_validation=1, num_test=number)
    save_examples(folder, ImageAttributeDataset(splits["test"], PHANTOM_GRAPH), number)
    print(f"Saved to {folder}: {size / 1e6:.1f} MB of weights, {number} images")


if __name__ == "__main__":
    main()
