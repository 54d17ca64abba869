"""The generation probe: its step against nanoGPT-style code, cached sampling, and code lengths of known sources.

    python tests/benchmarks/probe.py [--speed] [--sources NAME ...] [--steps 3000] [--cells quickstart]

Speed (one thread, fields of 64 positions, G = 4, V = 1024, eight images a step; rounds alternate, medians): the probe
tiny, and a plain GPT of the same width, blocks and heads over the 256 indices one after the other, as nanoGPT writes
it (one embedding, one head, logits of all tokens at once, F.cross_entropy). Sampling is 64 images with the cache, and
without: all positions anew for each code. Sources: bits a position of 512 fresh images against the entropy, for V =
1,024 and G = 4 over 16 positions, after training on 65,536 images. Cells: each cell of a sweep is trained, evaluated
and probed (tiny) in this process, and the processor time of each of the three is measured. Writes probe_cpu.json and
.md; what was not asked for keeps the numbers of the last time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gsq_tests"))
from token_sources import SOURCES

from gsq.config.probe import SIZES
from gsq.probe.fitting import bits_each, fit, optimiser
from gsq.probe.model import Block, Prior

OUT = Path(__file__).parent / "results"
POSITIONS, GROUPS, VALUES, IMAGES = 64, 4, 1024, 8
MARKOV = """`markov` is out of tiny's reach: four independent groups of 1,024 values have to pass through the 32 numbers
that it has for a code, and a softmax over 32 numbers cannot hold one likely value beside 1,023 equally likely ones
(tests/gsq_tests/token_sources.py says by how much). `blocks` is a Markov source without these two properties."""


class NanoGPT(nn.Module):
    """A GPT over all indices one after the other; its vocabulary is that of all groups."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VALUES, width)
        self.places = nn.Embedding(POSITIONS * GROUPS, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VALUES, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        flat = codes.flatten(1)
        x = self.tokens(F.pad(flat[:, :-1], (1, 0))) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), flat.flatten())


def alternate(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each task."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(rounds + 1):
        for name in list(tasks) if i % 2 else list(tasks)[::-1]:
            begun = time.perf_counter()
            tasks[name]()
            if i:
                found[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in found.items()}


@torch.no_grad()
def sample_without_cache(prior: Prior, uniform: Tensor) -> Tensor:
    codes = torch.zeros(uniform.shape, dtype=torch.int64)
    for p in range(uniform.shape[1]):
        for k in range(uniform.shape[2]):
            hidden = prior.hidden(codes[:, : p + 1]).view(len(codes), p + 1, uniform.shape[2], -1)
            codes[:, p, k] = prior._draw(hidden[:, p, k], k, uniform[:, p, k])
    return codes


def speed(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    size = SIZES["tiny"]
    prior, gpt = Prior(size, (VALUES,) * GROUPS, POSITIONS), NanoGPT(size.width, size.layers, size.heads)
    codes = torch.randint(VALUES, (IMAGES, POSITIONS, GROUPS))
    models: dict[str, Callable[[], Tensor]] = {"probe": lambda: prior(codes) / codes.numel(), "gpt": lambda: gpt(codes)}
    steps: dict[str, Callable[[], Any]] = {}
    for name, model in (("probe", prior), ("gpt", gpt)):
        optimizer = optimiser(model, size)

        def step(loss: Callable[[], Tensor] = models[name], optimizer: torch.optim.AdamW = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

        steps[name] = step
    seconds = alternate(steps, rounds)
    uniform = torch.rand(64, POSITIONS, GROUPS, dtype=torch.float64)
    same = bool(torch.equal(prior.sample(uniform[:4]), sample_without_cache(prior, uniform[:4])))
    tasks = {"cached": lambda: prior.sample(uniform), "uncached": lambda: sample_without_cache(prior, uniform)}
    sampling = alternate(tasks, 1)
    return {
        "step_seconds": seconds,
        "step_ratio": seconds["gpt"] / seconds["probe"],
        "sampling_seconds": sampling,
        "sampling_ratio": sampling["uncached"] / sampling["cached"],
        "same_samples": same,
        "parameters": {"probe": _parameters(prior), "gpt": _parameters(gpt)},
    }


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def source(name: str, steps: int, images: int = 65_536, positions: int = 16) -> dict[str, Any]:
    made, random = SOURCES[name](VALUES, GROUPS, positions), torch.Generator().manual_seed(1)
    train, selection, held_out = (made.draw(count, random) for count in (images, 64, 512))
    torch.manual_seed(0)
    prior = Prior(dataclasses.replace(SIZES["tiny"], steps=steps), (VALUES,) * GROUPS, positions)
    prior.start_from_counts(train)
    begun = time.perf_counter()
    found = fit(prior, train, selection, held_out, 0)
    bits = bits_each(prior, held_out) / positions
    return {
        "entropy": made.bits,
        "bits": float(bits.mean()),
        "standard_error": float(bits.std()) / len(bits) ** 0.5,
        "ratio": float(bits.mean()) / made.bits,
        "steps": steps,
        "converged": found.converged,
        "seconds": time.perf_counter() - begun,
    }


def cell_seconds(sweep: str, every: int) -> list[dict[str, Any]]:
    """Processor seconds of training, evaluation and probe of a sweep's first cell and each ``every``-th after it."""
    from gsq.evaluation import evaluate
    from gsq.probe import measure
    from gsq.runs.execute import execute
    from gsq.sweeps import plan
    from gsq.sweeps.spec.sweep import load_spec

    spent: dict[str, float] = {}

    def timed(name: str, task: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            try:
                return task(*arguments, **options)
            finally:
                spent[name] = time.process_time() - begun

        return run

    rows = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as runs:
        patch.setattr(evaluate, "evaluate_all", timed("evaluation", evaluate.evaluate_all))
        patch.setattr(measure, "probe", timed("probe", measure.probe))
        for cell in plan(load_spec(sweep)).cells[::every]:
            evaluation = dataclasses.replace(cell.config.evaluation, probe="tiny")
            begun = time.process_time()
            execute(dataclasses.replace(cell.config, evaluation=evaluation), Path(runs))
            total = time.process_time() - begun
            rows.append({"cell": cell.title, "training": total - sum(spent.values()), **spent})
            print(rows[-1], flush=True)
    return rows


def table(found: dict[str, Any]) -> str:
    lines = ["# The generation probe", "", f"{found['machine']}, torch {torch.__version__}, one thread.", ""]
    if "speed" in found:
        one = found["speed"]
        lines += ["| | probe | without | ratio |", "|---|---|---|---|"]
        for label, key, ours, other, ratio in (
            ("a step, against a GPT over all indices", "step_seconds", "probe", "gpt", "step_ratio"),
            ("64 samples, against no cache", "sampling_seconds", "cached", "uncached", "sampling_ratio"),
        ):
            lines.append(f"| {label} | {one[key][ours]:.3f} s | {one[key][other]:.3f} s | {one[ratio]:.2f} |")
        lines.append("")
    lines += ["| source | entropy | code length | ratio | standard error | steps |", "|---|---|---|---|---|---|"]
    for name in SOURCES:
        if (one := found["sources"].get(name)) is None:
            lines.append(f"| {name} | | not measured | | | |")
            continue
        lines.append(
            f"| {name} | {one['entropy']:.4f} | {one['bits']:.4f} | {one['ratio']:.4f} | {one['standard_error']:.4f} "
            f"| {one['steps']} |"
        )
    if "markov" in found["sources"]:
        lines += ["", MARKOV]
    if rows := found.get("cells"):
        lines += ["", "Processor time of cells of the quickstart: training, evaluation, and a probe (tiny).", ""]
        lines += ["| cell | training | evaluation | probe | probe / training |", "|---|---|---|---|---|"]
        for one in rows:
            seconds = " | ".join(f"{one[name]:.1f} s" for name in ("training", "evaluation", "probe"))
            lines.append(f"| {one['cell']} | {seconds} | {one['probe'] / one['training']:.2f} |")
        ratio = sum(one["probe"] for one in rows) / sum(one["training"] for one in rows)
        lines += ["", f"Together: {ratio:.2f}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sources", nargs="*", default=[], choices=list(SOURCES))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--cells", metavar="SWEEP", help="a sweep whose cells are trained and probed")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th of the cells")
    options = parser.parse_args()
    torch.set_num_threads(1)
    saved = OUT / "probe_cpu.json"
    found = json.loads(saved.read_text()) if saved.exists() else {"sources": {}}
    found["machine"] = platform.processor() or platform.machine()
    if options.speed:
        found["speed"] = speed(options.rounds)
    for name in options.sources:
        found["sources"][name] = source(name, options.steps)
        print(name, found["sources"][name], flush=True)
        saved.write_text(json.dumps(found, indent=1) + "\n")
    if options.cells:
        found["cells"] = cell_seconds(options.cells, options.every)
    saved.write_text(json.dumps(found, indent=1) + "\n")
    saved.with_suffix(".md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
