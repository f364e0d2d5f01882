"""Claim: the noise costs a fraction of the SVD it replaces, and next to nothing of a training step.

`python benchmarks/noise.py`: median over alternating repetitions in one process; ratios, not times, are the result.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from fanoise.noise import spectral_noise

SHAPES = ((256, 1536), (2048, 1536), (2048, 3584))


def by_svd(x: torch.Tensor) -> torch.Tensor:
    """Sublinear noise straight from Eq. 14-15."""
    _, sigma, vt = torch.linalg.svd(x, full_matrices=False)
    s = sigma.sqrt() / sigma.sqrt().mean()
    return (torch.randn(x.shape[0], len(sigma)) * s) @ vt


def median_seconds(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Alternate the calls, so that a busy moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    print(f"{'rows × dim':>12}  {'SVD ms':>8}  {'Gram ms':>8}  {'ratio':>6}")
    for m, n in SHAPES:
        x = F.normalize(torch.randn(m, n) * torch.arange(1, n + 1).pow(-0.5), dim=-1)
        found = median_seconds(
            {"svd": lambda x=x: by_svd(x), "gram": lambda x=x: spectral_noise(x)}, 3 if m > 256 else 15
        )
        ratio = found["svd"] / found["gram"]
        print(f"{m:>5} × {n:<4}  {1e3 * found['svd']:8.1f}  {1e3 * found['gram']:8.1f}  {ratio:5.1f}×")


if __name__ == "__main__":
    main()
