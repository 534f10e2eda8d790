"""The paper's evaluation, and a stricter one, of several pipelines on the same test images.

A pipeline is named after its fine-tuning: ``none``, ``hard``, ``soft`` or ``matched``. Its classifier is the *guide*,
which steered fine-tuning. The *judge* is a classifier that had no part in it. Measured are

* effectiveness and amplification (Table 1) of all test images, calibration, and how strong interventions are against
  real images with the same attributes;
* the distribution shift of the judge's embeddings (Fig. 2, A3), and their Fréchet distance to real images;
* composition, reversibility and minimality;
* the error against true counterfactuals, where these are known.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from softcft.cft import CFT_NAMES
from softcft.data.schema import ImageAttributeDataset, random_part, scale_pixels
from softcft.data.truth import PhantomTruth, TrueCounterfactuals
from softcft.evaluation.axioms import axiom_rows
from softcft.evaluation.bootstrap import bootstrap_weights, resampled_unit
from softcft.evaluation.config import EvaluationSettings
from softcft.evaluation.effectiveness import effectiveness_rows, plan_counterfactuals
from softcft.evaluation.embeddings import attribute_modes, shift_rows
from softcft.evaluation.figures.gallery import draw_counterfactuals, draw_interpolations
from softcft.evaluation.figures.shift import draw_shifts
from softcft.evaluation.figures.strength import strength_figure
from softcft.evaluation.figures.style import save
from softcft.evaluation.measuring import Measuring, NumberedImages
from softcft.evaluation.realism import frechet_rows
from softcft.evaluation.sight import sight_rows
from softcft.evaluation.strength import check_lookalikes, strength_rows
from softcft.evaluation.tables import COLUMNS, RESULT, ROW_NAMES
from softcft.evaluation.truth import ExpressionProbe, probe_rows, truth_rows
from softcft.graph import CausalGraph
from softcft.models.classifier import AttributeClassifier
from softcft.pipelines.query import CausalPipeline

__all__ = ["Evaluation", "evaluate"]

ERRORS = ("error", "error_outside", "error_factual")


def evaluate(
    pipelines: Mapping[str, CausalPipeline],
    dataset: Mapping[str, Any],
    judge: AttributeClassifier,
    *,
    vae: AutoencoderKL | None = None,
    truth: Mapping[str, TrueCounterfactuals | None] | None = None,
    subjects: Sequence[Hashable] | None = None,
    dataset_name: str = "",
    backbone_settings: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure how good the counterfactuals of one or several pipelines are.

    Args:
        pipelines: By fine-tuning, ``none``, ``hard``, ``soft`` or ``matched``. All have one guide: their classifier.
        dataset: The splits ``test`` and ``validation``, each a :class:`datasets.Dataset` as
            :class:`~softcft.data.schema.ImageAttributeDataset` takes it, with images of the pipelines' size. Images
            that miss a value are left out.
        judge: A classifier that had no part in fine-tuning, with the causal graph of the pipelines.
        vae: Autoencoder of the images, for minimality (CLD). Left out, so is minimality.
        truth: By split, the true counterfactuals if they are known
            (:func:`~softcft.data.truth.true_counterfactuals`).
        subjects: For each row of the test split the id of its subject: images of one subject are resampled together.
            Left out, each image is of another subject.
        dataset_name: What the column ``dataset`` says.
        backbone_settings: Arguments of the pipelines' ``make_backbone``, such as ``{"guidance_scale": 2.0}``.
        accelerator: Device, precision and processes; by default a new :class:`accelerate.Accelerator`.
        settings: Fields of :class:`~softcft.evaluation.config.EvaluationSettings`.

    Returns:
        The tidy table of :mod:`softcft.evaluation.tables`, the same on every process.

    Raises:
        ValueError: If a pipeline has an unknown name, no classifier, or images of another size; causal graphs differ;
            the guides differ; a split has fewer than two complete images or is alike in something; an intervention has
            a category that no test image has; or a setting is out of range.

    Example:
        >>> table = evaluate({"soft": pipe}, load_phantom(64), judge, num_resamples=100)  # doctest: +SKIP
        >>> table.query("table == 'effectiveness' and metric == 'auc'")  # doctest: +SKIP
    """
    evaluation = Evaluation(
        pipelines,
        dataset,
        judge,
        EvaluationSettings(**settings),
        vae=vae,
        truth=truth,
        subjects=subjects,
        backbone_settings=backbone_settings,
        accelerator=accelerator,
    )
    evaluation.measure()
    return evaluation.table(dataset_name)


class Evaluation:
    """An evaluation in its steps, for those who also want its figures: check, :meth:`measure`, then the results.

    The arguments are those of :func:`evaluate`, and so are the errors; no image is made before :meth:`measure`.
    """

    def __init__(
        self,
        pipelines: Mapping[str, CausalPipeline],
        dataset: Mapping[str, Any],
        judge: AttributeClassifier,
        settings: EvaluationSettings,
        *,
        vae: AutoencoderKL | None = None,
        truth: Mapping[str, TrueCounterfactuals | None] | None = None,
        subjects: Sequence[Hashable] | None = None,
        backbone_settings: Mapping[str, Any] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.graph, self.settings, self.judge = judge.causal_graph, settings, judge.eval()
        interventions = list(settings.interventions or self.graph.names)
        for name in interventions:
            self.graph[name]
        if "none" in interventions or len(set(interventions)) < len(interventions):
            raise ValueError(
                "interventions must name each variable once, and none that is named 'none', which stands for real "
                f"images; got {interventions}."
            )
        check_pipelines(pipelines, self.graph)
        self.pipelines = dict(pipelines)
        self.guides = {cft: x.classifier for cft, x in pipelines.items() if x.classifier is not None}
        self.backbones = {cft: x.make_backbone(**backbone_settings or {}).eval() for cft, x in pipelines.items()}
        self.images, self.validation = (_complete_images(dataset, name, self.graph) for name in ("test", "validation"))
        for cft, pipeline in pipelines.items():
            if pipeline.image_format.size != (size := self.images.images.sample_size):
                raise ValueError(
                    f"dataset has images of {size} pixels, but pipelines[{cft!r}] takes {pipeline.image_format.size}."
                )
        self.plans = {}
        for cft, pipeline in pipelines.items():
            plan = plan_counterfactuals(pipeline.attribute_scm, self.images.parents, interventions, settings.seed)
            check_lookalikes(self.graph, self.images.parents, plan, interventions)
            self.plans[cft] = plan
        everyone = range(len(self.images.images)) if subjects is None else subjects
        self.subjects = [everyone[row] for row in self.images.rows]
        self.weights = bootstrap_weights(self.subjects, settings.num_resamples, settings.seed)
        self.accelerator = accelerator or Accelerator()
        self.truth = dict(truth or {})
        self.measuring = Measuring(
            self.images,
            interventions,
            judge.to(self.accelerator.device),
            None if vae is None else vae.eval().to(self.accelerator.device),
            self.truth.get("test"),
            self.accelerator,
            settings.eval_batch_size,
            settings.seed,
        )
        # A part by images and not by subjects: so it has images of more subjects.
        self.shown, self.chosen = (
            random_part(range(len(self.images)), number, settings.seed)
            for number in (settings.shift_images, settings.axiom_images)
        )
        self.results: dict[str, dict[str, Tensor]] = {}
        self.axioms: dict[str, dict[str, dict[str, Tensor]]] = {}

    def measure(self) -> None:
        """Make and measure all counterfactuals, on all processes together. Pipelines are left on the CPU."""
        # Modes are fitted to validation images: those of test images would fit these better than counterfactuals.
        embeddings = self.measuring.of_images(self.validation, "real")
        try:
            self.modes = attribute_modes(embeddings, self.graph, self.validation.parents)
        except ValueError as error:
            raise ValueError(f"The {len(self.validation)} images of the validation split: {error}") from error
        for cft, pipeline in self.pipelines.items():
            pipeline.to(self.accelerator.device)
            backbone, plan, name = self.backbones[cft], self.plans[cft], CFT_NAMES[cft]
            self.results[cft] = self.measuring.of_model(backbone, self.guides[cft], plan, name)
            self.axioms[cft] = self.measuring.of_axioms(backbone, plan, self.chosen, name)
            pipeline.to("cpu")
        if self.measuring.known:
            first = next(iter(self.pipelines))
            guide = self.guides[first].to(self.accelerator.device)
            self.results["truth"] = self.measuring.of_truth(guide, self.plans[first])
        self.probe = None
        if isinstance(of_validation := self.truth.get("validation"), PhantomTruth):
            expressions = of_validation.expression(self.validation.rows, self.validation.parents)
            self.probe = ExpressionProbe(embeddings, expressions, of_validation.expression_columns)

    def interventions_of(self, cft: str) -> list[str]:
        """The interventions that a model, or ``truth``, has counterfactuals of."""
        return self.measuring.known if cft == "truth" else self.measuring.interventions

    def table(self, dataset_name: str = "") -> pd.DataFrame:
        """All numbers, see :func:`evaluate`."""
        tables = []
        for cft, result in self.results.items():
            for name, rows in self._rows(cft, result):
                real = (rows["intervention"] == "none") & (name != "axioms")
                tables.append(rows.assign(table=name, cft=np.where(real, "real", cft)))
        if self.probe is not None and isinstance(truth := self.truth.get("test"), PhantomTruth):
            expressions = truth.expression(self.images.rows, self.images.parents)
            embeddings = next(iter(self.results.values()))["judge/embedding"][:, 0]
            rows = probe_rows(self.probe, embeddings, expressions, self.weights)
            tables.append(rows.assign(table="truth", cft="real"))
        guide = next(iter(self.guides.values()))
        sight = sight_rows({"guide": guide.sight, "judge": self.judge.sight})
        if len(sight):
            tables.append(sight.assign(table="sight", cft="real"))
        # Each model was compared with the same real images.
        metrics = pd.concat(tables, ignore_index=True).drop_duplicates(["table", "cft", *RESULT[:4]])
        metrics = metrics.assign(dataset=dataset_name, seed=self.settings.seed, resampled=resampled_unit(self.subjects))
        return metrics[list(COLUMNS)].reset_index(drop=True)

    def _rows(self, cft: str, result: Mapping[str, Tensor]) -> list[tuple[str, pd.DataFrame]]:
        """The results of one model, with the tables they belong to."""
        interventions, known = self.interventions_of(cft), self.measuring.known
        graph, weights, seed, shown = self.graph, self.weights, self.settings.seed, self.shown
        labels, embeddings = result["labels"], result["judge/embedding"]
        seen = {name: result[name] for name in ("guide", "judge")}
        of_shown = embeddings[shown], labels[shown], interventions, [self.subjects[i] for i in shown]
        rows = [
            ("effectiveness", effectiveness_rows(graph, labels, seen, interventions, weights)),
            ("effectiveness", strength_rows(graph, labels, seen, interventions, weights, seed)),
            ("shift", shift_rows(graph, self.modes, *of_shown, seed)),
            ("axioms", frechet_rows(graph, labels, embeddings, interventions, self.subjects, seed)),
        ]
        if cft == "truth":
            return rows
        rows.append(("axioms", axiom_rows(self.axioms[cft], weights[:, self.chosen])))
        if known:
            errors = {name: {key: result[f"{key}/{name}"] for key in ERRORS} for name in known}
            true_embeddings = self.results["truth"]["judge/embedding"]
            expression_errors = None
            if self.probe is not None:
                expression_errors = {
                    name: self.probe.errors(embeddings[:, 1 + interventions.index(name)], true_embeddings[:, 1 + i])
                    for i, name in enumerate(known)
                }
            rows.append(("truth", truth_rows(errors, weights, expression_errors)))
        return rows

    def draw(self, folder: str | Path) -> None:
        """Draw counterfactuals, interpolations, distribution shift and strength.

        Args:
            folder: Gets PNG and PDF files, and a GIF for each continuous variable.
        """
        folder, device, seed, graph = Path(folder), self.accelerator.device, self.settings.seed, self.graph
        folder.mkdir(parents=True, exist_ok=True)
        # Spread over the whole table, which may be sorted.
        number = min(self.settings.grid_images, len(self.images))
        examples = [i * len(self.images) // number for i in range(number)]
        image = scale_pixels(torch.stack([self.images[i]["image"] for i in examples])).to(device)
        models = {cft: (x.attribute_scm, self.backbones[cft].to(device)) for cft, x in self.pipelines.items()}
        with self.accelerator.autocast():
            for draw in (draw_counterfactuals, draw_interpolations):
                draw(models, image, self.images.parents, examples, self.images.rows, seed, folder)
        embeddings, labels = (
            {CFT_NAMES[cft]: self.results[cft][key][self.shown] for cft in self.pipelines}
            for key in ("judge/embedding", "labels")
        )
        subjects = [self.subjects[i] for i in self.shown]
        draw_shifts(graph, self.modes, embeddings, labels, self.measuring.interventions, subjects, seed, folder)
        labels, logits = ({ROW_NAMES[cft]: x[key] for cft, x in self.results.items()} for key in ("labels", "judge"))
        interventions = {ROW_NAMES[cft]: self.interventions_of(cft) for cft in self.results}
        save(strength_figure(graph, labels, logits, interventions, seed), folder / "strength")


def check_pipelines(pipelines: Mapping[str, CausalPipeline], graph: CausalGraph) -> None:
    """Refuse pipelines that cannot be evaluated.

    Raises:
        ValueError: If there are none, one has an unknown name, no classifier, or another graph than the judge, or
            their classifiers differ.
    """
    if not pipelines or (unknown := [name for name in pipelines if name not in CFT_NAMES]):
        raise ValueError(f"pipelines must be named {', '.join(CFT_NAMES)}, got {unknown if pipelines else 'none'}.")
    for name, pipeline in pipelines.items():
        if pipeline.causal_graph != graph:
            raise ValueError(f"pipelines[{name!r}] was trained with another graph than the judge.")
        if pipeline.classifier is None:
            raise ValueError(f"pipelines[{name!r}] has no classifier, which is the guide that it is tested with.")
    (first, guide), *others = [(name, x.classifier.state_dict()) for name, x in pipelines.items() if x.classifier]
    for name, other in others:
        if guide.keys() != other.keys() or not all(torch.equal(guide[key].cpu(), other[key].cpu()) for key in guide):
            raise ValueError(f"pipelines must all have one guide, but the classifiers of {first} and {name} differ.")


def _complete_images(dataset: Mapping[str, Any], split: str, graph: CausalGraph) -> NumberedImages:
    if split not in dataset:
        raise ValueError(f"dataset must have the splits test and validation, got {list(dataset)}.")
    images = NumberedImages(ImageAttributeDataset(dataset[split], graph))
    if len(images) < 2:
        raise ValueError(
            f"The {split} split of dataset must have at least 2 images that miss no value, but has {len(images)} of "
            f"{len(images.images)}."
        )
    return images
