"""How near to the truth a counterfactual of the phantom can come: the best predictor that one image allows.

    python benchmarks/ceiling.py --judge outputs/phantom_32/judge
    python benchmarks/ceiling.py --sample_size 64 --max_train_steps 40000 --seed 1

Part of an image's noise cannot be seen in it: how an effusion would look in somebody who has none. So no method has an
error of 0. Here true counterfactuals are known and can be made without end; a network learns from such pairs, never the
same twice, what an image would be under new attributes. Nobody has that in practice. It minimises the error that is
reported, the mean absolute difference, on the interventions of the paper's Table 1, one variable each. What it reaches
on the test images is the ceiling, if more steps make it no better: the error is printed as it falls.

The table has the error ratio, with a 95 % bootstrap interval: the error over that of the untouched image. And, with
``--judge``, what that classifier sees of the variable in true counterfactuals and in the network's: AUC in %.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from softcft import AttributeClassifier
from softcft.cft.interventions import other_values
from softcft.data.phantom import BLOCK, PHANTOM_GRAPH, draw_block, render
from softcft.data.schema import scale_pixels, to_eight_bits
from softcft.data.truth import PhantomTruth
from softcft.evaluation.bootstrap import bootstrap_weights
from softcft.evaluation.effectiveness import predict_images
from softcft.evaluation.metrics import variable_metrics
from softcft.evaluation.truth import truth_errors, truth_rows
from softcft.noise import seeded_generator

INTERVENTIONS = ("race", "sex", "disease")
PATCH = 2  # side in pixels
PAIRS = 1_000_000  # added to the seed: images that no data set of the recipes has


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample_size", type=int, default=32, help="height and width in pixels (default: 32)")
    parser.add_argument("--max_train_steps", type=int, default=20_000, help="default: 20000")
    parser.add_argument("--train_batch_size", type=int, default=64, help="pairs of a step (default: 64)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="at the start; it ends at 0 (default: 1e-3)")
    parser.add_argument("--num_test", type=int, default=4000, help="test images (default: 4000)")
    parser.add_argument("--data_seed", type=int, default=0, help="of the test images (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and its pairs (default: 0)")
    parser.add_argument("--judge", help="folder of a classifier")
    args = parser.parse_args()
    if args.train_batch_size < 1 or BLOCK % args.train_batch_size:
        parser.error(f"--train_batch_size must divide {BLOCK}, got {args.train_batch_size}.")
    judge = AttributeClassifier.from_pretrained(args.judge) if args.judge else None

    torch.manual_seed(args.seed)
    network = make_network(args.sample_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_train_steps)
    batches = pairs(args.sample_size, PAIRS + args.seed, args.train_batch_size)
    losses = []
    for step in (progress := tqdm(range(1, args.max_train_steps + 1), unit="step")):
        image, parents, new_parents, truth = next(batches)
        loss = F.l1_loss(predict(network, image, parents, new_parents), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(127.5 * loss.detach())
        if step % max(1, args.max_train_steps // 10) == 0:
            mean = torch.stack(losses).mean()
            progress.write(f"step {step}: error {mean:.3f} grey levels over the last {len(losses)} steps")
            losses = []
    print_table(network.eval(), args.sample_size, args.data_seed, args.num_test, judge)


def make_network(size: int) -> UNet2DModel:
    """A UNet that sees an image in patches and, as constant maps, its attributes and the new ones."""
    return UNet2DModel(
        sample_size=size // PATCH,
        in_channels=PATCH**2 + 2 * PHANTOM_GRAPH.width,
        out_channels=PATCH**2,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )


def predict(network: UNet2DModel, image: Tensor, parents: Tensor, new_parents: Tensor) -> Tensor:
    """Counterfactuals (B, 1, R, R) of images in [-1, 1], given encoded attributes (B, K), factual and new."""
    patches = F.pixel_unshuffle(image, PATCH)
    maps = torch.cat([parents, new_parents], dim=1)[:, :, None, None].expand(-1, -1, *patches.shape[2:])
    return image + F.pixel_shuffle(network(torch.cat([patches, maps], dim=1), timestep=0).sample, PATCH)


def pairs(size: int, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Without end: images, their attributes, new ones in which one variable differs, and true counterfactuals."""
    block = 0
    while True:
        parents, noise = draw_block("train", block, size, seed)
        generator = seeded_generator(seed, block)
        new_parents = parents.clone()
        chosen = torch.randint(len(INTERVENTIONS), (BLOCK,), generator=generator)
        for i, name in enumerate(INTERVENTIONS):
            columns, rows = PHANTOM_GRAPH.slices[name], chosen == i
            new_parents[rows, columns] = other_values(PHANTOM_GRAPH, name, parents, generator)[rows]
        images = (scale_pixels(to_eight_bits(render(values, noise))) for values in (parents, new_parents))
        split = (part.split(batch_size) for part in (next(images), parents, new_parents, next(images)))
        yield from zip(*split, strict=True)
        block += 1


@torch.no_grad()
def print_table(
    network: UNet2DModel, size: int, data_seed: int, number: int, judge: AttributeClassifier | None
) -> None:
    """The table, on the first test images."""
    truth = PhantomTruth("test", size, data_seed)
    parents = torch.cat([draw_block("test", b, size, data_seed)[0] for b in range(-(-number // BLOCK))])[:number]
    print("| intervention | error ratio | AUC, true | AUC, network |", "|---|---|---|---|", sep="\n")
    for i, name in enumerate(INTERVENTIONS):
        columns = PHANTOM_GRAPH.slices[name]
        new_parents = parents.clone()
        new_parents[:, columns] = other_values(PHANTOM_GRAPH, name, parents, seeded_generator(data_seed, i))
        shown: dict[str, list[Tensor]] = {"factual": [], "true": [], "network": []}
        for rows in torch.arange(number).split(BLOCK):
            image, _ = truth.counterfactual(rows.tolist(), name, parents[rows])
            true, _ = truth.counterfactual(rows.tolist(), name, new_parents[rows])
            made = predict(network, image, parents[rows], new_parents[rows]).clamp(-1, 1)
            for key, images in zip(shown, (image, true, made), strict=True):
                shown[key].append(images)
        factual, true, made = (torch.cat(images) for images in shown.values())
        table = truth_rows({name: truth_errors(factual, made, true)}, bootstrap_weights(range(number), 1000, seed=0))
        ratio = table.set_index("metric").loc["faithfulness_ratio"]
        seen = ""
        if judge is not None:
            seen = " | ".join(f"{auc(judge, images, new_parents, name):.1f}" for images in (true, made))
        print(f"| do({name}) | {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] | {seen or ' | '} |")


def auc(judge: AttributeClassifier, images: Tensor, labels: Tensor, name: str) -> float:
    """What the judge sees of a variable in images (N, 1, R, R) that should show labels (N, K)."""
    columns = PHANTOM_GRAPH.slices[name]
    parts = [predict_images({"judge": judge}, part[:, None])["judge"][:, 0] for part in images.split(BLOCK)]
    weights = bootstrap_weights(range(len(images)), 0, seed=0)
    return variable_metrics(PHANTOM_GRAPH[name], torch.cat(parts)[:, columns], labels[:, columns], weights)[
        "auc"
    ].item()


if __name__ == "__main__":
    main()
