"""Filter and split MIMIC-CXR as the paper does, and bring its images to one size, once for all training.

    python recipes/prepare_mimic_cxr.py --root physionet.org/files --output_dir outputs/mimic_cxr/data
    python recipes/prepare_mimic_cxr.py --root TREE --output_dir OUT --sample_csv_dir chexploration/datafiles/mimic

--root holds MIMIC-CXR-JPG and two tables of MIMIC-IV as PhysioNet gives them; docs/mimic_cxr.md says how to get them.
OUT is then a data set for all recipes (--config recipes/configs/mimic_cxr_224.yaml --data_dir OUT), with splits train,
validation and test, and with a table funnel.csv of how many images and subjects each rule left. After an interruption,
run the same command again: images that were read before are taken from the cache.

Both the data set and the table are derived from patient data: PhysioNet's terms hold for them too. Do not share them.
"""

import argparse
import shutil
from pathlib import Path

from softcft.data.mimic_cxr import read_mimic_cxr, select_mimic_cxr


def main() -> None:
    """Run the recipe; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="Folder that holds the files of PhysioNet.")
    parser.add_argument("--output_dir", required=True, help="Folder for the data set; must be new or empty.")
    parser.add_argument("--resolution", type=int, default=224, help="Height and width of the images (default: 224).")
    parser.add_argument(
        "--sample_csv_dir",
        help="Folder with mimic.sample.train.csv, .val.csv and .test.csv of chexploration, for exactly the paper's "
        "splits.",
    )
    parser.add_argument(
        "--on_error",
        choices=("skip", "raise"),
        default="skip",
        help="Leave out damaged rows and images, and say which (default), or stop at the first.",
    )
    parser.add_argument("--num_workers", type=int, help="Images decoded at the same time (default: one per CPU core).")
    arguments = parser.parse_args()
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise SystemExit(f"--output_dir {output_dir} is there already and not empty; give another one or delete it.")

    print("Reading the tables", flush=True)
    try:
        selection = select_mimic_cxr(
            arguments.root, sample_csv_dir=arguments.sample_csv_dir, on_error=arguments.on_error
        )
        splits, funnel = read_mimic_cxr(
            selection, arguments.resolution, on_error=arguments.on_error, num_workers=arguments.num_workers
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error

    # Written beside its place and moved there whole: what has the name of a data set is one.
    unfinished = output_dir.with_name(f"{output_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    splits.save_to_disk(unfinished)
    funnel.to_csv(unfinished / "funnel.csv", index=False)
    if output_dir.exists():
        output_dir.rmdir()
    unfinished.rename(output_dir)

    print(f"\nWhat each rule left\n{funnel.to_string(index=False)}\n")
    for name, rows in splits.items():
        print(f"{name:10}  {len(rows):7,} images of {len(set(rows['subject_id'])):6,} subjects")
    print(f"\nSaved to {output_dir}, with the table above as funnel.csv.")


if __name__ == "__main__":
    main()
