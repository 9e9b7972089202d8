# Copyright 2026 tinychat_ros developers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
The two searches of AWQ: a scale for each input channel, and where to cut each group's range.

Lin et al., AWQ: Activation-aware Weight Quantization (MLSys 2024).
"""

from __future__ import annotations

from itertools import chain
from math import inf
from typing import Callable, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor

from tinychat_ros.kernels.rtn import fit_grid, Grid, nearest_codes, values, WeightSpec

ALPHAS = 20
CLIPS = tuple(1 - step / 20 for step in range(10))
_SMALLEST = 1e-4


class Scale(NamedTuple):
    """The factors fp32 [K] of a layer's input channels, and the alpha that gave them."""

    factors: Tensor
    alpha: float


def candidates(magnitude: Tensor, weights: Sequence[Tensor], spec: WeightSpec,
               alpha_one: bool, weight_magnitude: bool) -> Iterator[Scale]:
    """
    Yield the scales to try, s = magnitude^alpha for 20 alphas in [0, 1).

    :param magnitude: mean |x| of each input channel, fp32 [K].
    :param alpha_one: try alpha = 1 as well.
    :param weight_magnitude: then also s = magnitude^alpha / w^(1 - alpha), where w is the mean
        over the rows of the weight's magnitude within its group.
    """
    alphas = [step / ALPHAS for step in range(ALPHAS + alpha_one)]
    for alpha in alphas:
        yield Scale(_normalized(magnitude ** alpha, magnitude), alpha)
    if weight_magnitude:
        w = _relative_magnitude(weights, spec)
        for alpha in alphas:
            factors = magnitude ** alpha / (w ** (1 - alpha)).clamp(min=_SMALLEST)
            yield Scale(_normalized(factors, magnitude), alpha)


def best_scale(scales: Iterator[Scale], loss: Callable[[Tensor], float]) -> Scale:
    """Return the scale that loses least, the first where no loss is finite."""
    best = first = next(scales)
    smallest = inf
    for scale in chain([first], scales):
        value = loss(scale.factors)
        if value < smallest:
            best, smallest = scale, value
    return best


def fit_clipped_grid(weight: Tensor, hessian: Tensor, spec: WeightSpec) -> Grid:
    """
    Fit each group's grid after cutting its range to 1.00, 0.95, … 0.55 of its largest magnitude.

    The cut with the smallest squared error of the group's part of the output wins.

    :param weight: fp32 [N, K].
    :param hessian: X^T X fp32 [K, K]; its blocks along the diagonal are those of the groups.
    """
    size = spec.group(weight.shape[1])
    blocks = torch.stack([hessian[k:k + size, k:k + size] for k in range(0, len(hessian), size)])
    best = fit_grid(weight, spec)
    smallest = _group_errors(weight, best, blocks, spec)
    for clip in CLIPS[1:]:
        grid = fit_grid(weight, spec, clip)
        errors = _group_errors(weight, grid, blocks, spec)
        better = errors < smallest
        smallest = torch.where(better, errors, smallest)
        best = Grid(*(torch.where(better, new, old) for new, old in zip(grid, best)))
    return best


def _group_errors(weight: Tensor, grid: Grid, blocks: Tensor, spec: WeightSpec) -> Tensor:
    """Return [N, K/G]: the squared error of each group's part of the output, over all inputs."""
    error = values(nearest_codes(weight, grid, spec), grid, spec) - weight
    by_group = error.view(len(error), len(blocks), -1).transpose(0, 1)
    return ((by_group @ blocks) * by_group).sum(-1).t()


def _normalized(factors: Tensor, magnitude: Tensor) -> Tensor:
    """Centre factors around 1; a channel that is always zero has no say and keeps a factor 1."""
    alive = magnitude > 0
    factors = factors.clamp(min=_SMALLEST)
    if alive.any():
        factors = factors / (factors[alive].max() * factors[alive].min()).sqrt()
    usable = alive & torch.isfinite(factors) & (factors > 0)
    return torch.where(usable, factors, torch.ones_like(factors))


def _relative_magnitude(weights: Sequence[Tensor], spec: WeightSpec) -> Tensor:
    w = torch.cat(list(weights)).abs()
    groups = w.view(len(w), -1, spec.group(w.shape[1]))
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-6)).view(w.shape).mean(0)
