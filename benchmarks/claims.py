"""The paper's claims about training at equal cost: cascade, evolution, edge-aware loss.

``python benchmarks/claims.py --photos DIR --test DIR --out DIR`` trains every variant (it resumes
where it was stopped) and puts the table into ``docs/paper.md``; ``--device cuda --batch 64 --steps
1000`` made the one there. Cost is counted as multiplications: the weights of the network in
training, times the pixels it saw.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from page import put_into

from dn_core.network_config import BlockStart, NetworkConfig, paper_config
from dn_core.networks import DnResNet, count_parameters
from dn_core.paper.protocol import ModelMethod, Score, evaluate, paper_levels, read_images
from dn_core.safe_write import atomic_write
from dn_core.training.data.clean_images import CleanImageDataset, load_clean_images
from dn_core.training.recipes import Phase, Recipe, load_recipe
from dn_core.training.stages import plan_stages, train

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "paper.md"
PATCH = 64
EVOLUTION_SHARE = 0.5
"""What evolution may cost, as a part of what its start has cost."""
EVOLUTION_RATE = 5e-4
"""A quarter of the rate of training from scratch: a higher one undoes what the network learned."""
TITLES = {
    "once": "one-shot",
    "cascade": "cascade, new blocks compute nothing at first",
    "cascade-paper": "cascade, new blocks N(0, 0.001)",
    "edge-a": "one-shot, edge-a",
    "edge-b": "one-shot, edge-b",
    "edge-a-linear": "one-shot, edge-a not squared",
    "evolve": "DS by evolution, from the one-shot network",
    "evolve-paper": "DS by evolution, new blocks N(0, 0.001), from the same network",
    "evolve-once": "DS by one replacement, from the same network",
    "once-noise-out": "one-shot, noise out, mean subtracted",
    "cascade-noise-out": "cascade, noise out, mean subtracted",
}
AGAINST = {
    "once": "",
    "evolve": "evolve-once",
    "evolve-paper": "evolve-once",
    "cascade-noise-out": "once-noise-out",
}
"""What a variant is compared with, where that is not ``"once"``."""


@dataclass(frozen=True)
class Row:
    """What a variant reached with one seed.

    Means over the test images and, for `psnr` and `ssim`, over the 16 levels.
    """

    variant: str
    seed: int
    steps: int
    batch: int
    psnr: float
    ssim: float
    psnr_gaussian_25: float


def recipe_for(variant: str, seed: int, steps: int, batch: int, folder: Path) -> Recipe:
    """The recipe of a variant.

    It costs what `steps` steps of the whole network cost; evolution, `EVOLUTION_SHARE` of that.
    """
    base = replace(
        load_recipe("paper-once"),
        name=variant,
        seed=seed,
        optimizer="muon",
        lr=2e-3,
        schedule="cosine",
        warm_up=50,
        drop=0.0,
    )
    base = replace(base, phases=(Phase(steps, batch, PATCH),))
    separable = paper_config(layers=13, block="separable")
    budget = steps * weights(base.network)
    new_blocks: BlockStart = "paper" if variant.endswith("-paper") else "identity"
    if variant.endswith("-noise-out"):
        base = replace(base, network=paper_config(layers=13, residual=True, subtract_mean=True))
    if variant.startswith("cascade"):
        recipe = replace(base, plan="cascade", new_blocks=new_blocks)
    elif variant.startswith("evolve"):
        start = str(folder / f"once-{seed}" / "once.safetensors")
        plan = variant.removesuffix("-paper")
        recipe = replace(
            base,
            plan=plan,
            network=separable,
            start=start,
            lr=EVOLUTION_RATE,
            new_blocks=new_blocks,
        )
        budget *= EVOLUTION_SHARE
    else:
        return replace(base, loss=variant if variant.startswith("edge") else "mse")
    a_stage = round(budget / sum(weights(stage.network) for stage in plan_stages(recipe)))
    return replace(recipe, phases=(Phase(a_stage, batch, PATCH),))


def weights(config: NetworkConfig) -> int:
    """Weights, equal to multiplications per pixel: the paper's networks work at full resolution."""
    return count_parameters(DnResNet(config))


def rows_of(
    dataset: CleanImageDataset,
    test: Path,
    folder: Path,
    seeds: int,
    steps: int,
    batch: int,
    device: str,
) -> Iterator[Row]:
    """Train and score everything that is not there yet."""
    images, levels = read_images(test), list(paper_levels().values())
    for seed in range(seeds):
        for variant in TITLES:
            place = folder / f"{variant}-{seed}"
            scored = place / "row.json"
            if not scored.exists():
                path = train(
                    recipe_for(variant, seed, steps, batch, folder), dataset, place, device=device
                )
                row = row_of(
                    variant, seed, steps, batch, list(evaluate([ModelMethod(path)], images, levels))
                )
                with atomic_write(scored) as temporary:
                    temporary.write_text(json.dumps(asdict(row)))
            row = Row(**json.loads(scored.read_text()))
            if (row.steps, row.batch) != (steps, batch):
                raise ValueError(
                    f"{scored} is of {row.steps} steps of {row.batch} patches; {steps} of {batch} "
                    "are expected. Change --out."
                )
            yield row


def row_of(variant: str, seed: int, steps: int, batch: int, scores: list[Score]) -> Row:
    """Means over levels."""
    at_25 = next(score.psnr for score in scores if score.level == "gaussian 25")
    psnr, ssim = (
        statistics.fmean(getattr(score, name) for score in scores) for name in ("psnr", "ssim")
    )
    return Row(variant, seed, steps, batch, psnr, ssim, at_25)


def table(rows: list[Row], test: Path, steps: int, batch: int) -> str:
    """Markdown: a row for each variant, with the spread over seeds.

    Differences from the variant that it is compared with are taken seed by seed.
    """
    by_variant: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        by_variant[row.variant][row.seed] = row
    lines = [
        "| | PSNR, 16 levels | SSIM, 16 levels | PSNR, sigma 25 | against | dB | SSIM |",
        "| --- " * 7 + "|",
    ]
    for variant, found in by_variant.items():
        other = AGAINST.get(variant, "once")
        cells = [
            TITLES[variant],
            *(
                spread([getattr(row, name) for row in found.values()], digits)
                for name, digits in COLUMNS
            ),
        ]
        cells.append(TITLES[other] if other else "")
        for name, digits in COLUMNS[:2]:
            pairs = [
                getattr(row, name) - getattr(by_variant[other][seed], name)
                for seed, row in found.items()
                if other
            ]
            cells.append(spread(pairs, digits, signed=True) if pairs else "")
        lines.append(f"| {' | '.join(cells)} |")
    megapixels = steps * batch * PATCH**2 / 1e6
    note = (
        f"Seeds: {len(by_variant['once'])} (mean ± standard deviation), on the "
        f"{len(read_images(test))} images of {test.name}. One-shot: "
        f"{megapixels:.0f} Mpx ({steps} steps of {batch} patches of {PATCH}x{PATCH}); cascades "
        "cost the same, evolutions half of it on top."
    )
    return "\n".join([*lines, "", note])


COLUMNS = (("psnr", 3), ("ssim", 4), ("psnr_gaussian_25", 3))


def spread(values: list[float], digits: int, signed: bool = False) -> str:
    """Mean and, of several values, standard deviation."""
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder of clean images to train on"
    )
    parser.add_argument("--test", type=Path, required=True, help="folder of test images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=365, help="steps of one-shot training")
    parser.add_argument("--batch", type=int, default=8, help="patches a step; 64 on a GPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, to train on")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_clean_images(arguments.photos, smallest=PATCH, skip_bad=True)
    rows = []
    for row in rows_of(
        dataset,
        arguments.test,
        arguments.out,
        arguments.seeds,
        arguments.steps,
        arguments.batch,
        arguments.device,
    ):
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    put_into(
        arguments.page, "claims", table(rows, arguments.test, arguments.steps, arguments.batch)
    )


if __name__ == "__main__":
    main()
