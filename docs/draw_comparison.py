"""Draws comparison.png, the picture of README, from a run: python docs/draw_comparison.py outputs/phantom."""

import sys
from pathlib import Path

from PIL import Image

from softcft import DSCMPipeline, example_model
from softcft.evaluation.figures.grids import cft_comparison

PARENTS = {"age": 44.6, "sex": "male", "race": "White", "disease": "no finding"}
DO = {"sex": "female", "race": "Black", "disease": "pleural effusion"}


def main() -> None:
    """Draw the picture beside this file."""
    picture = Image.open(example_model() / "examples" / "0.png")
    values = {f"do({variable})": value for variable, value in DO.items()}
    counterfactuals = {}
    for name, folder in {"hard labels": "hard", "soft labels": "soft"}.items():
        pipe = DSCMPipeline.from_pretrained(Path(sys.argv[1]) / folder)
        do = [{variable: value} for variable, value in DO.items()]
        result = pipe(picture, PARENTS, do=do, output_type="pt")
        counterfactuals[name] = dict(zip(values, 2 * result.images - 1, strict=True))
        original = 2 * (result.images - result.effects)[0] - 1
        caption = pipe.causal_graph.in_words(PARENTS)
    figure = cft_comparison(original, counterfactuals, caption, values)
    figure.savefig(Path(__file__).with_name("comparison.png"), dpi=160)


if __name__ == "__main__":
    main()
