"""How fast AG-Net is here: decoding, training steps, and a whole search; CPU seconds of one thread.

    python benchmarks/agnet_speed.py
    HWNAS_TABLES=DIR python benchmarks/agnet_speed.py --search      # and a whole search, start-up included

Process time, not wall time, so that other work on the machine disturbs less; the fastest of a few repetitions. The
original's figures were measured in the same way with its own code (torch 2.13, torch-geometric 2.8.1, one thread of a
2-core AMD EPYC virtual machine), the search on the same tables.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch

from hwnas.nn.decoder import PAPER, GraphDecoder, Rules, reconstruction_loss, sample_logits

EDGES = ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 6), (3, 6), (4, 7), (5, 7), (6, 7))


def cell_rules() -> Rules:
    """NAS-Bench-201 with operations on the nodes: all edges known, one of five operations at the inner nodes."""
    adjacency = torch.zeros((8, 8), dtype=torch.bool)
    adjacency[tuple(torch.tensor(EDGES).T)] = True
    types = torch.zeros((8, 7), dtype=torch.bool)
    types[0, 1] = types[7, 0] = True
    types[1:7, 2:] = True
    return Rules.fixed(adjacency, types)


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Process seconds of one call: the fastest of three rounds of `repeats` after two calls to warm up."""
    work()
    work()
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(repeats):
            work()
        rounds.append((time.process_time() - start) / repeats)
    return min(rounds)


def show_decoding(model: GraphDecoder, rules: Rules, rng: torch.Generator) -> None:
    print("graphs decoded and sampled per CPU second (NAS-Bench-201; original: 410 at batch 16, 510 at 1000)")
    print(f"  {'batch':>5} {'paper':>9} {'feedback':>9} {'feedback, free edges':>21}")
    for count in (1, 16, 100, 1000, 2000):
        z = torch.randn((count, model.config.latent), generator=rng)

        @torch.no_grad()
        def paper(z: torch.Tensor = z) -> object:
            return sample_logits(*model(z), generator=rng)

        def feedback(z: torch.Tensor = z) -> object:
            return model.sample(z, rules, generator=rng)

        def free(z: torch.Tensor = z) -> object:
            return model.sample(z, generator=rng)

        rates = [count / cpu_seconds(work, max(2, 2000 // count // 4)) for work in (paper, feedback, free)]
        print(f"  {count:>5} {rates[0]:>9,.0f} {rates[1]:>9,.0f} {rates[2]:>21,.0f}")


def show_training(model: GraphDecoder, rules: Rules, rng: torch.Generator) -> None:
    print("CPU ms per training step: forward, backward, Adam (original, paper mode, batch 16, with predictor: 66-76)")
    print(f"  {'batch':>5} {'paper':>9} {'feedback':>9} {'feedback, free edges':>21}")
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999), fused=True)
    for count in (16, 32, 200):
        z = torch.randn((count, model.config.latent), generator=rng)
        graphs = model.sample(z, rules, generator=rng)
        losses = (
            lambda z=z, graphs=graphs: reconstruction_loss(*model(z), graphs),
            lambda z=z, graphs=graphs: -model.log_likelihood(z, graphs, rules),
            lambda z=z, graphs=graphs: -model.log_likelihood(z, graphs),
        )
        spent = []
        for loss in losses:

            def step(loss: Callable[[], torch.Tensor] = loss) -> None:
                adam.zero_grad()
                loss().mean().backward()
                adam.step()

            spent.append(1e3 * cpu_seconds(step, 10))
        print(f"  {count:>5} {spent[0]:>9.1f} {spent[1]:>9.1f} {spent[2]:>21.1f}")


def show_search(generator: str, seed: int, queries: int) -> None:
    """A search as a user starts it, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        # nothing is exported: the figure is the search's
        command = [sys.executable, "-c", "from hwnas.cli import main; main()", "search", "--quiet", "--models", "none"]
        command += ["--device", "edgegpu", "--latency-budget", "5", "--dataset", "ImageNet16-120"]
        command += ["--generator", generator, "--queries", str(queries), "--seed", str(seed)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, "--out", str(Path(folder) / "run")], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = (Path(folder) / "run" / "archive.csv").is_file()
    if not finished or done.returncode not in (0, 1):  # 1: nothing was feasible, a search all the same
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"  {generator:<12} seed {seed}: {spent:6.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true", help="also time whole searches")
    parser.add_argument("--seeds", type=int, default=1, help="searches of each generator")
    parser.add_argument("--queries", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    model, rules = GraphDecoder(PAPER["nb201"], generator=rng), cell_rules()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    show_decoding(model, rules, rng)
    show_training(model, rules, rng)
    if asked.search:
        print(f"CPU s of a search, {asked.queries} queries, start-up included (original, 192 queries: 118-205)")
        for generator in ("agnet", "agnet-paper"):
            for seed in range(asked.seeds):
                show_search(generator, seed, asked.queries)


if __name__ == "__main__":
    main()
