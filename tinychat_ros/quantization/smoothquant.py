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
W8A8: int8 weights per output channel, int8 activations per token, and channels made alike.

Xiao et al., SmoothQuant (ICML 2023): a factor of each input channel moves magnitude from the
activations, where single channels are large, into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels import ops, reference
from tinychat_ros.kernels.linear import Linear, StoredWeight
from tinychat_ros.kernels.packing import Int8Weight
from tinychat_ros.models.block import Block
from tinychat_ros.quantization.block import Inputs
from tinychat_ros.quantization.folding import fold_into_norm, norm_tensors
from tinychat_ros.quantization.recipes import by_norm, Scratch, Step
from tinychat_ros.quantization.report import LayerResult

ALPHAS = tuple(step / 20 for step in range(6, 19))
PLAIN = 'plain'


def quantize_int8(weight: Tensor) -> Int8Weight:
    """Round a weight [N, K] to int8 with a symmetric scale, max |w| / 127, of each row."""
    scales = weight.abs().amax(1) / 127
    steps = weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return Int8Weight(torch.round(steps).clamp(-127, 127).to(torch.int8), scales)


def smoothing(activations: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """
    Return s = max|x|^alpha / max|w|^(1 - alpha) of each input channel, fp32 [K].

    :param activations: max |x| [K]. A channel that is always zero, in x or in w, keeps s = 1.
    """
    largest = torch.cat(list(weights)).abs().amax(0)
    factors = activations ** alpha / largest ** (1 - alpha)
    usable = (activations > 0) & (largest > 0) & torch.isfinite(factors) & (factors > 0)
    return torch.where(usable, factors, torch.ones_like(factors))


@dataclass
class Survey:
    """
    What the parts of one block that share a norm showed on the calibration text.

    :param largest: max |x| of what the first linears read, [K].
    :param losses: by layer, then by alpha as text, or PLAIN without smoothing: mean squared error
        of the outputs over their mean square.
    """

    largest: Tensor
    losses: dict[str, dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {'largest': self.largest.tolist(), 'losses': self.losses}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Survey:
        """Return a survey that was kept as JSON, which loses no bit of fp32."""
        return cls(torch.tensor(value['largest']), value['losses'])


class Surveyor:
    """
    Measures one block, part by part.

    :param alpha: the only one to try; None tries ALPHAS.
    """

    def __init__(self, block: Block, scratch: Scratch, alpha: Optional[float]) -> None:
        self.current = block
        self._scratch = scratch
        self._alphas = ALPHAS if alpha is None else (alpha,)
        self._surveys: dict[str, Survey] = {}

    def quantize(self, step: Step, inputs: Inputs, search: Inputs) -> None:
        """Measure the parts of a step; nothing is quantized yet."""
        for parts in by_norm(step):
            self._surveys[parts[0].norm] = survey(parts, self.current, self._scratch, inputs,
                                                  search, self._alphas)

    def as_json(self) -> dict[str, Any]:
        """Return the surveys by the norms of their parts."""
        return {norm: found.as_json() for norm, found in self._surveys.items()}


def survey(parts: Step, block: Block, scratch: Scratch, inputs: Inputs, search: Inputs,
           alphas: Sequence[float]) -> Survey:
    """Measure the inputs of parts with one norm, and on ``search`` what each alpha would lose."""
    norm, offset = getattr(block, parts[0].norm), parts[0].norm_offset
    largest = torch.zeros_like(norm.weight)
    for x, _ in inputs():
        largest = torch.maximum(largest, reference.normalize(x, norm).abs().amax(0))
    normed = [reference.normalize(x, norm) for x, _ in search()]
    weights = _first_weights(parts, block)
    factors = {PLAIN: torch.ones_like(largest)}
    for alpha in alphas:
        smooth = smoothing(largest, list(weights.values()), alpha)
        factors[_key(alpha)] = fold_into_norm(norm, smooth, offset)[1]
    losses = {name: _losses(normed, weight, factors) for name, weight in weights.items()}
    for part in parts:
        hidden = [part.hidden(block, x, scratch) for x, _ in search()]
        last = getattr(block, part.last).weight
        losses[part.last_name] = _losses(hidden, last, {PLAIN: torch.ones_like(last[0])})
    return Survey(largest, losses)


def _first_weights(parts: Step, block: Block) -> dict[str, Tensor]:
    """Return the weights behind the norm of parts that share it, by their names."""
    return {name: layer.weight for part in parts
            for name, layer in zip(part.first_names, getattr(block, part.first))}


def best_alpha(surveys: Sequence[Survey]) -> float:
    """Return the alpha with the smallest sum of relative errors over the whole model."""
    totals = {alpha: sum(by_alpha[_key(alpha)] for found in surveys
                         for by_alpha in found.losses.values() if _key(alpha) in by_alpha)
              for alpha in ALPHAS}
    return min(totals, key=totals.__getitem__)


class SmoothQuantizer:
    """
    Turns one block into int8, part by part.

    :param block: the block with plain fp32 weights, each linear on its own.
    """

    def __init__(self, block: Block, prefix: str, alpha: float,
                 surveys: Mapping[str, Survey]) -> None:
        self.current = block
        self.tensors: dict[str, StoredWeight] = {}
        self.results: list[LayerResult] = []
        self._prefix, self._alpha, self._surveys = prefix, alpha, surveys

    def quantize(self, step: Step, inputs: Optional[Inputs], search: Optional[Inputs]) -> None:
        """Smooth the first linears of parts through their norms, and round all of them."""
        for parts in by_norm(step):
            self._smooth(parts, self._surveys[parts[0].norm])

    def _smooth(self, parts: Step, found: Survey) -> None:
        """Quantize parts that share a norm."""
        if not torch.isfinite(found.largest).all():
            raise CheckpointError(f'{self._prefix}{parts[0].first_names[0]}: expected finite '
                                  'inputs on the calibration text, got NaN or infinity')
        norm, offset = getattr(self.current, parts[0].norm), parts[0].norm_offset
        weights = _first_weights(parts, self.current)
        factors = smoothing(found.largest.to(norm.weight), list(weights.values()), self._alpha)
        norm, factors = fold_into_norm(norm, factors, offset)
        self.tensors.update(norm_tensors(self._prefix + parts[0].norm_name, norm, offset))
        for part in parts:
            for name, layer in zip(part.first_names, getattr(self.current, part.first)):
                self._store(name, replace(layer, weight=layer.weight * factors), found,
                            self._alpha)
            self._store(part.last_name, getattr(self.current, part.last), found, None)

    def _store(self, name: str, layer: Linear, found: Survey, alpha: Optional[float]) -> None:
        n, k = layer.weight.shape
        self.tensors[f'{self._prefix}{name}'] = quantize_int8(layer.weight)
        if layer.bias is not None:
            self.tensors[f'{self._prefix}{name}.bias'] = layer.bias.half()
        losses = found.losses[name]
        self.results.append(LayerResult(
            name=f'{self._prefix}{name}', n=n, k=k, bits=8, group_size=None,
            loss_rtn=losses[PLAIN], loss=losses[_key(alpha)], alpha=alpha,
            bytes_before=2 * n * k, bytes_after=n * k + 4 * n))


def _key(alpha: Optional[float]) -> str:
    return PLAIN if alpha is None else f'{alpha:g}'


def _losses(inputs: Sequence[Tensor], weight: Tensor,
            factors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return for each factors the mean squared error of W8A8 outputs over their mean square."""
    wanted = [reference.linear(x, weight) for x in inputs]
    energy = sum(_square(out) for out in wanted)
    losses = {}
    for key, smooth in factors.items():
        rounded = Linear(quantize_int8(weight * smooth))
        error = sum(_square(ops.linear(x / smooth, rounded) - out)
                    for x, out in zip(inputs, wanted))
        losses[key] = error / energy if energy else 0.0
    return losses


def _square(value: Tensor) -> float:
    return float(value.pow(2).sum(dtype=torch.float64))
