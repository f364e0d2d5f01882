"""The noise of one side against the singular value decomposition it does without, on this CPU.

Ours is the whole operation (spectrum, scales, draws, product); `torch.linalg.svd` is the decomposition alone, as it is
called by default (`full_matrices=True`) and thin. Features are unit float32 rows with a power-law spectrum.
"""

import argparse
from functools import partial

from timing import clock_of, how, paired, show

SHAPES = ((256, 1536), (2048, 1536), (2048, 3584))
"""Rows of the batch x dimensions: the analysis setting and the paper's 8 x 256 at the sizes of its 2B and 7B models."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each shape; 256 rows get three times as many")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--scaling", default="sublinear", help="what the noise is scaled by")
    options = parser.parse_args()

    import torch
    import torch.nn.functional as F

    from fanoise.noise import spectral_noise

    torch.set_num_threads(options.threads)
    clock = clock_of(options.threads)
    torch.manual_seed(0)
    rows = []
    for m, n in SHAPES:
        x = F.normalize(torch.randn(m, n) * torch.arange(1, n + 1).pow(-0.5), dim=-1)
        times = paired(
            {
                "svd": partial(torch.linalg.svd, x),
                "thin": partial(torch.linalg.svd, x, full_matrices=False),
                "noise": partial(spectral_noise, x, options.scaling),
            },
            rounds=options.rounds * (1 if m > 256 else 3),
            clock=clock,
        )
        milliseconds = [f"{times.median_ms(name):.1f}" for name in ("svd", "thin", "noise")]
        rows.append((f"{m} × {n}", *milliseconds, times.ratio("svd", "noise"), times.ratio("thin", "noise")))
    show(("rows × dim", "svd ms", "thin svd ms", "noise ms", "svd / noise", "thin svd / noise"), rows)
    print(f"float32, {options.scaling}, {options.threads} thread(s); {how(clock)}")


if __name__ == "__main__":
    main()
