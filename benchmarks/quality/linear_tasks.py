"""RMP beside the baselines on five linear tasks: ``python benchmarks/quality/linear_tasks.py``.

``--prior fashion``: Fashion-MNIST test images from number 5000 on (tune on others). ``--prior photo``: 256x256 crops of
scikit-image's photographs. Noise 0.05 on [-1, 1]. Every row is written to a CSV file as soon as it is finished, and a
second run with the same prior and number of images goes on from there; ``--print`` shows what is there. Baselines come
with their authors' settings and, as "tuned", with the best that ``tune_baselines.py`` found on other images, if any.

RMP takes ``rmp.presets.for_task`` where a table was tuned for that budget, "untuned" the default levels, and "paper"
the settings of its authors with the ``gaussian`` guidance. ``--bfloat16`` runs every network in bfloat16, for rows of a
thousand evaluations: on processors with AMX a third of the time, and estimates whose PSNR differs by at most 0.03 dB.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from photos import EIGHT, central_crops, psnr
from torch import Tensor, nn

import rmp_fast as rmp
from rmp_fast import baselines, operators
from rmp_fast.bench.methods import tuned_settings
from rmp_fast.training.data import fashion_images

NOISE = 0.05
FIRST = 5000
SIZES = {"fashion": (32, 32), "photo": (256, 256)}
FIELDS = (
    "prior",
    "task",
    "row",
    "images",
    "evaluations",
    "backward",
    "samples",
    "psnr",
    "standard_error",
    "seconds_per_image",
)


def random_masks(count: int, size: tuple[int, int], first: int) -> Tensor:
    return torch.stack([operators.random_mask((1, *size), 0.7, seed=first + index) for index in range(count)])


# The operator for a number of images of one size, from number ``first`` on; the box in proportion to the size.
TASKS: dict[str, Callable[[int, tuple[int, int], int], operators.Operator]] = {
    "inpaint_random": lambda count, size, first: operators.Inpainting(random_masks(count, size, first)),
    "inpaint_box": lambda count, size, first: operators.Inpainting(operators.box_mask(size, size[0] * 3 // 8)),
    "sr4": lambda count, size, first: operators.SuperResolution(4),
    "gaussian_deblur": lambda count, size, first: operators.GaussianBlur(1.5 if size == SIZES["fashion"] else 2.0),
    "motion_deblur": lambda count, size, first: operators.Blur(
        operators.motion_kernel(9 if size == SIZES["fashion"] else 15, 45)
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A method at a budget; ``settings`` are added to the authors' for the task, or instead of the tuned ones.

    Of ``evaluations``, every look takes one per flip.
    """

    label: str
    method: str
    evaluations: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: int = 1
    tuned: bool = False
    flips: int = 1


def rows(samples: int) -> list[Row]:
    """RMP, then the others, as the table has them."""
    found = [Row(f"rmp-{n}", "rmp", n, tuned=True) for n in (5, 10, 20, 60)]
    found += [Row(f"rmp-{20 * n} flips", "rmp", 20 * n, tuned=True, flips=n) for n in (2, 4, 8)]
    found += [Row(f"rmp-{n} untuned", "rmp", n) for n in (10, 20, 40, 100)]
    found += [Row("paper-vp", "rmp", 400, rmp.presets.paper_vp()), Row("paper-ve", "rmp", 600, rmp.presets.paper_ve())]
    for n in (20, 100):
        found += [
            Row(f"ddrm-{n}", "ddrm", n),
            Row(f"ddrm-{n} tuned", "ddrm", n, tuned=True),
            Row(f"diffpir-{n}", "diffpir", n),
            Row(f"diffpir-{n} tuned", "diffpir", n, tuned=True),
        ]
    return [
        *found,
        Row("ddrm-100 quiet", "ddrm", 100, {"noise_scale": math.sqrt(0.5)}, tuned=True),
        Row("pigdm-100", "pigdm", 100),
        Row("pigdm-100 score", "pigdm", 100, {"weight": "score"}),
        Row("pigdm-100 tuned", "pigdm", 100, tuned=True),
        *(Row(f"{method}-100", method, 100) for method in ("reddiff", "daps", "dps")),
        Row("reddiff-1000", "reddiff", 1000),
        Row("reddiff-1000 tuned", "reddiff", 1000, tuned=True),
        Row("daps-1000", "daps", 1000),
        Row("daps-1000 tuned", "daps", 1000, tuned=True),
        Row("dps-1000", "dps", 1000),
        Row("dps-1000 tuned", "dps", 1000, tuned=True),
        Row(f"{samples} x ddrm-100", "ddrm", 100, samples=samples),
    ]


class InBfloat16(nn.Module):
    """A network whose convolutions and products are computed in bfloat16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            result: Tensor = self.network(x, s)
        return result


def problem(
    task: str, count: int, cache: pathlib.Path, prior: str = "fashion", first: int = FIRST
) -> tuple[Tensor, operators.Operator, Tensor]:
    """Images, operator and measurements; mask and noise of an image do not depend on ``count``."""
    if prior == "fashion":
        truth = torch.from_numpy(fashion_images(cache, "test")[first : first + count]).float() / 127.5 - 1
    else:
        truth = central_crops()[:count]
    return truth, *measured(task, truth, first)


def measured(task: str, truth: Tensor, first: int) -> tuple[operators.Operator, Tensor]:
    """Operator and measurements of images (B, C, H, W) on [-1, 1]; ``first`` and so on decide masks and noise."""
    op = TASKS[task](len(truth), (truth.shape[-2], truth.shape[-1]), first)
    y = op.A(truth)
    for index, item in enumerate(y):
        item += NOISE * torch.randn(item.shape, generator=torch.Generator().manual_seed(first + index))
    return op, op.A(y) if isinstance(op, operators.Inpainting) else y


def exists(row: Row, task: str, prior: str) -> bool:
    """Whether anything was tuned, for a row of what was."""
    if not row.tuned or row.settings:
        return True
    if row.method == "rmp":
        return str(row.evaluations // row.flips) in rmp.presets.tables(prior).get(task, {})
    return tuned_settings(row.method, row.evaluations, task, prior) is not None


def run(
    row: Row, task: str, op: operators.Operator, y: Tensor, shape: tuple[int, ...], prior: Any, seed: int = 0
) -> rmp.Estimate:
    seeds = torch.arange(seed, seed + len(y))
    if row.method != "rmp":
        if row.tuned:
            settings = row.settings or tuned_settings(row.method, row.evaluations, task, prior.name) or {}
        else:
            settings = {**baselines.paper_settings(row.method, task), **row.settings}
        return baselines.reconstruct(
            row.method, y, op, prior, NOISE, evaluations=row.evaluations, samples=row.samples, shape=shape,
            seeds=seeds, **settings,
        )  # fmt: skip
    looks = row.evaluations // row.flips
    options = row.settings or rmp.presets.for_task(task, prior if row.tuned else "untuned", looks)
    return rmp.Plan(op, rmp.priors.self_ensemble(prior, row.flips), shape, NOISE, **options).execute(y, seeds=seeds)


def read(path: pathlib.Path, prior: str, count: int) -> dict[tuple[str, str], dict[str, str]]:
    """Finished rows for that prior and that many images, by row and task; ValueError for a file of other columns."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        header = tuple(reader.fieldnames or ())
        if header != FIELDS:
            lacking = ", ".join(f"`{name}`" for name in FIELDS if name not in header) or "this order"
            raise ValueError(
                f"{path} must have the columns {', '.join(FIELDS)} to go on from, and lacks {lacking}; "
                "name another file"
            )
        entries = [e for e in reader if e["prior"] == prior and int(e["images"]) == count]
    return {(entry["row"], entry["task"]): entry for entry in entries}


def table(done: dict[tuple[str, str], dict[str, str]], labels: list[str]) -> str:
    lines = [
        f"{'PSNR in dB':22}"
        + "".join(f"{task:>17}" for task in TASKS)
        + f"{'evaluations':>13}{'backward':>10}{'s/image':>9}"
    ]
    for label in labels:
        found = [done.get((label, task)) for task in TASKS]
        entries = [entry for entry in found if entry is not None]
        if not entries:
            continue
        cells = "".join(f"{float(entry['psnr']):17.2f}" if entry else f"{'':17}" for entry in found)
        last = entries[-1]
        seconds = sum(float(entry["seconds_per_image"]) for entry in entries) / len(entries)
        lines.append(f"{label:22}{cells}{last['evaluations']:>13}{last['backward']:>10}{seconds:9.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=tuple(SIZES), default="fashion", help="and its images (fashion)")
    parser.add_argument("--count", type=int, help="images (64, of photographs all 8)")
    parser.add_argument("--samples", type=int, default=64, help="samples that the last row averages (64)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image's chain (0); needs a --csv of its own")
    parser.add_argument("--bfloat16", action="store_true", help="networks in bfloat16; needs a --csv of its own")
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="only these rows, such as rmp-20 ddrm-100")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS), help="only these (all)")
    parser.add_argument(
        "--csv", type=pathlib.Path, default=pathlib.Path("linear_tasks.csv"), help="where rows are kept"
    )
    parser.add_argument("--print", action="store_true", help="print the rows that are there and stop")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    args = parser.parse_args()
    wanted = rows(args.samples)
    labels = [row.label for row in wanted]
    most = 64 if args.prior == "fashion" else len(EIGHT)
    count = args.count or most
    if args.prior == "photo" and count > most:
        parser.error(f"--count must be at most {most} for photographs, got {count}")
    if args.csv == parser.get_default("csv"):
        if args.seed:
            parser.error("--seed needs a --csv of its own: rows do not say what seed they had")
        if args.bfloat16:
            parser.error("--bfloat16 needs a --csv of its own: rows do not say what they were computed in")
    for label in args.rows or ():
        if label not in labels:
            parser.error(f"--rows must be of {', '.join(map(repr, labels))}, got {label!r}")
    try:
        done = read(args.csv, args.prior, count)
    except ValueError as error:
        parser.error(f"--csv {error}")
    prior = rmp.priors.load(args.prior)
    if args.bfloat16:
        prior.network = InBfloat16(prior.network)
    for row in wanted:
        for task in args.tasks:
            if args.print or (row.label, task) in done or (args.rows and row.label not in args.rows):
                continue
            if not exists(row, task, args.prior):
                continue
            truth, op, y = problem(task, count, args.data, args.prior)
            estimate = run(row, task, op, y, tuple(truth.shape), prior, args.seed)
            each = psnr(estimate.mean.clamp(-1, 1), truth)
            stats = estimate.stats
            values = (
                args.prior, task, row.label, count, int(stats["evaluations"]), int(stats["backward_evaluations"]),
                row.samples,
                f"{float(each.mean()):.4f}", f"{float(each.std()) / math.sqrt(count):.4f}",
                f"{stats['seconds'] / count:.4f}",
            )  # fmt: skip
            entry = {name: str(value) for name, value in zip(FIELDS, values, strict=True)}
            fresh = not args.csv.is_file()
            with args.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if fresh:
                    writer.writeheader()
                writer.writerow(entry)
            done[row.label, task] = entry
            print(f"{row.label:22}{task:18}{float(each.mean()):7.2f} dB", flush=True)
    source = f"images of Fashion-MNIST from number {FIRST}" if args.prior == "fashion" else "photographs"
    print(f"\n{count} {source}, noise {NOISE}")
    print(table(done, labels))


if __name__ == "__main__":
    main()
