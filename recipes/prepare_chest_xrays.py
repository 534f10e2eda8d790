"""Filter and split a public set of chest X-rays, and bring its pictures to one size, once for all training.

    python recipes/prepare_chest_xrays.py --source nih --root FOLDER --output_dir outputs/nih/data
    python recipes/prepare_chest_xrays.py --source mimic_cxr --root physionet.org/files --output_dir OUT
    python recipes/prepare_chest_xrays.py --source mimic_cxr --root TREE --output_dir OUT --sample_csv_dir FOLDER

--root holds the files as they are downloaded, unpacked, in any folders; docs/chest_xrays.md says how to get them, and
softcft/data/chest_xrays/ which rules hold for each source, and where they come from.
OUT is then a data set for all recipes (--config recipes/configs/nih_224.yaml --data_dir OUT), with splits train,
validation and test. funnel.csv in it has how many pictures and subjects each rule left, left_out.csv names all pictures
that were left out and why, provenance.json says what all this was made of. After an interruption, run the same command
again: pictures that were read before are taken from the cache.

All of OUT is derived from patient data: the terms of the source hold for it too.
"""

import argparse
import inspect
import logging
from pathlib import Path

from softcft.data.config import CHEST_XRAYS


def main() -> None:
    """Run the recipe; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, choices=CHEST_XRAYS, help="Which set of X-rays it is.")
    parser.add_argument("--root", required=True, help="Folder that holds the downloaded files.")
    parser.add_argument("--output_dir", required=True, help="Folder for the data set; must be new or empty.")
    parser.add_argument("--resolution", type=int, default=224, help="Height and width of the pictures (default: 224).")
    parser.add_argument(
        "--sample_csv_dir",
        help="Folder with lists of chexploration, for exactly the published splits. mimic_cxr: mimic.sample.train.csv, "
        ".val.csv and .test.csv. chexpert: chexpert_split_2021_08_20.csv, or chexpert.sample.train.csv, .val.csv and "
        ".test.csv.",
    )
    parser.add_argument(
        "--on_error",
        choices=("skip", "raise"),
        default="skip",
        help="Leave out damaged rows and pictures, and say which (default), or stop at the first.",
    )
    parser.add_argument(
        "--num_workers", type=int, help="Pictures decoded at the same time (default: one per CPU core)."
    )
    arguments = parser.parse_args()
    # Here, once there is no mistake in the settings: it takes seconds.
    from softcft.data.chest_xrays import SOURCES
    from softcft.data.chest_xrays.prepared import read_pictures, save_prepared

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    select = SOURCES[arguments.source]
    options = {"on_error": arguments.on_error}
    if arguments.sample_csv_dir is not None:
        if "sample_csv_dir" not in inspect.signature(select).parameters:
            raise SystemExit(f"--sample_csv_dir: there are no such lists for {arguments.source}; leave it out.")
        options["sample_csv_dir"] = arguments.sample_csv_dir
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise SystemExit(f"--output_dir {output_dir} is there already and not empty; give another one or delete it.")

    print("Reading the tables", flush=True)
    try:
        selection = select(arguments.root, **options)
        print(f"Preparing {len(selection.rows):,} pictures", flush=True)
        prepared = read_pictures(
            selection, arguments.resolution, on_error=arguments.on_error, num_workers=arguments.num_workers
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    save_prepared(selection, prepared, output_dir)

    print(f"\nWhat each rule left\n{prepared.funnel.to_string(index=False)}\n")
    for name, rows in prepared.splits.items():
        print(f"{name:10}  {len(rows):7,} images of {len(set(rows['subject_id'])):6,} subjects")
    print(
        f"\nSaved to {output_dir}, with the table above as funnel.csv, all {len(prepared.left_out):,} pictures that "
        "were left out in left_out.csv, and what it was made of in provenance.json."
    )


if __name__ == "__main__":
    main()
