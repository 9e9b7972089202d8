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
"""Rounding with error feedback: each column's rounding error is made up for by the later ones."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor

from tinychat_ros.kernels.rtn import fit_grid, Grid, nearest_codes, values, WeightSpec

# Of the mean of the diagonal; the value of the paper.
DAMPING = 0.01
# At most; their feedback is applied one by one, then one matrix product carries it to the rest.
_BLOCK = 128


def damped(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """Return X^T X [K, K] plus a share of its mean diagonal, so that it can be inverted."""
    result = hessian.clone()
    result.diagonal().add_(damping * hessian.diagonal().mean().clamp(min=1e-12))
    return result


def codes_with_feedback(weight: Tensor, hessian: Tensor, spec: WeightSpec,
                        grid: Optional[Grid] = None,
                        act_order: bool = False) -> tuple[Tensor, Grid]:
    """
    Round a weight so that its output on the calibration inputs changes least.

    Frantar et al., GPTQ (ICLR 2023), with the columns in order or, ``act_order``, those of the
    largest inputs first. Groups keep their columns either way, as the formats demand.

    :param weight: fp32 [N, K].
    :param hessian: X^T X fp32 [K, K] of the inputs X.
    :param grid: None fits each group when its first column is reached, as published; with
        ``act_order``, where groups interleave, before any rounding.
    :returns: codes fp32 [N, K] and the grid.
    """
    k = weight.shape[1]
    if grid is None and act_order:
        grid = fit_grid(weight, spec)
    order = torch.arange(k, device=weight.device)
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    work = _Columns(weight.t()[order], _feedback(hessian, order), order, spec, grid)
    step = _block(spec.group(k))
    for begin in range(0, k, step):
        work.round_block(begin, min(begin + step, k))
    back = torch.argsort(order)
    return work.codes[:, back], Grid(torch.stack(work.scales, 1), torch.stack(work.zeros, 1))


def _feedback(hessian: Tensor, order: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped Hessian in rounding order."""
    # Unnamed, each matrix is freed once the next is there: at K = 14336 one takes 800 MB.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(hessian)[order][:, order]))
    return torch.linalg.cholesky(inverse, upper=True)


def _block(group: int) -> int:
    """Return how many columns to take at once; a group begins in one only if it ends there too."""
    return group * (_BLOCK // group) if group <= _BLOCK else math.gcd(group, _BLOCK)


class _Columns:
    """
    The weight, which is overwritten, while its columns, in rounding order, turn into codes.

    :param weight: [K, N], transposed, since every step reads and writes whole columns.
    """

    def __init__(self, weight: Tensor, feedback: Tensor, order: Tensor, spec: WeightSpec,
                 grid: Optional[Grid]) -> None:
        self._weight = weight
        self._codes = torch.empty_like(self._weight)
        self._feedback = feedback
        self._groups = (order // spec.group(len(order))).tolist()
        self._spec = spec
        self._column = WeightSpec(spec.bits, -1, spec.symmetric)
        self.scales = [] if grid is None else list(grid.scales.unbind(1))
        self.zeros = [] if grid is None else list(grid.zeros.unbind(1))

    @property
    def codes(self) -> Tensor:
        """Return the codes [N, K]."""
        return self._codes.t()

    def round_block(self, begin: int, end: int) -> None:
        """Round the columns from ``begin`` to ``end`` and correct all later ones."""
        errors = torch.empty_like(self._weight[begin:end])
        for column in range(begin, end):
            grid = self._grid(column)
            weight = self._weight[column][:, None]
            code = nearest_codes(weight, grid, self._column)
            error = (weight - values(code, grid, self._column)) / self._feedback[column, column]
            self._codes[column], errors[column - begin] = code[:, 0], error[:, 0]
            self._weight[column + 1:end].addr_(self._feedback[column, column + 1:end],
                                               error[:, 0], alpha=-1)
        self._weight[end:].addmm_(self._feedback[begin:end, end:].t(), errors, alpha=-1)

    def _grid(self, column: int) -> Grid:
        """Return the grid [N, 1] of a column, fitting that of its group when it is the first."""
        group = self._groups[column]
        if group == len(self.scales):
            size = self._spec.group(len(self._groups))
            fitted = fit_grid(self._weight[column:column + size].t(), self._column)
            self.scales.append(fitted.scales[:, 0])
            self.zeros.append(fitted.zeros[:, 0])
        return Grid(self.scales[group][:, None], self.zeros[group][:, None])
