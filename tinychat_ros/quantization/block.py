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
"""One decoder block on its way from plain weights to quantized ones, part by part."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterator, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.linear import Linear, StoredWeight
from tinychat_ros.kernels.ops import Norm
from tinychat_ros.kernels.packing import QuantizedWeight, tensors_of
from tinychat_ros.kernels.rtn import (
    fit_grid, nearest_codes, packed, rounded, WeightSpec)
from tinychat_ros.models.block import Block
from tinychat_ros.quantization.awq import best_scale, candidates, fit_clipped_grid, Scale
from tinychat_ros.quantization.gptq import codes_with_feedback
from tinychat_ros.quantization.method import Method
from tinychat_ros.quantization.recipes import Part, Scratch
from tinychat_ros.quantization.report import LayerResult
from tinychat_ros.quantization.statistics import gather, Statistics

# For each sequence the block's input x [T, H] as it will be, and as it is in the original model.
Inputs = Callable[[], Iterator[tuple[Tensor, Tensor]]]
AWQ_COLUMNS = 8


class BlockQuantizer:
    """
    Quantizes the parts of one block in turn.

    :param block: the block with plain fp32 weights, each linear on its own.
    :param prefix: of its tensors' names.
    :param shared_queries: query heads that read one KV head.
    """

    def __init__(self, block: Block, prefix: str, spec: WeightSpec, method: Method,
                 scratch: Scratch, shared_queries: int) -> None:
        self.original = self.current = block
        self.tensors: dict[str, StoredWeight] = {}
        self.results: list[LayerResult] = []
        self._prefix, self._spec, self._method = prefix, spec, method
        self._scratch, self._shared_queries = scratch, shared_queries

    def quantize(self, part: Part, inputs: Optional[Inputs], search: Optional[Inputs]) -> None:
        """
        Quantize the linears of a part.

        :param inputs: all calibration sequences; None where the method needs none.
        :param search: those on which scales are tried.
        """
        self._first(part, inputs, search)
        self._last(part, inputs)

    def _first(self, part: Part, inputs: Optional[Inputs], search: Optional[Inputs]) -> None:
        layers = _Layers(part.first_names, getattr(self.original, part.first), self._spec)
        norm = getattr(self.original, part.norm)
        sums = None
        if inputs is not None and layers.quantizable:
            pairs = ((reference.rms_norm(x, *norm), reference.rms_norm(x0, *norm))
                     for x, x0 in inputs())
            sums = gather(self._prefix + part.first_names[0], pairs, layers.weights, self._shifted)
        targets = self._targets(layers, sums)
        scale = None
        if self._method.scales and layers.quantizable:
            scale = self._search_first(part, layers, targets, sums, list(search()))
            norm, factors = fold_into_norm(norm, scale.factors)
            scale = Scale(factors, scale.alpha)
        stored = self.tensors[f'{self._prefix}{part.norm_name}.weight'] = norm.weight.half()
        self.current = replace(self.current, **{part.norm: Norm(stored.float(), norm.eps)})
        unclipped = () if self._method.clip_all else part.unclipped
        self._store(part.first, layers, targets, sums, scale, unclipped)

    def _last(self, part: Part, inputs: Optional[Inputs]) -> None:
        layers = _Layers((part.last_name,), (getattr(self.original, part.last),), self._spec)
        sums = None
        if inputs is not None and layers.quantizable:
            seen = self.original if self._method.inputs == 'original' else self.current
            pairs = ((part.hidden(seen, x, self._scratch),
                      part.hidden(self.original, x0, self._scratch) if self._shifted else x0)
                     for x, x0 in inputs())
            sums = gather(self._prefix + part.last_name, pairs, layers.weights, self._shifted)
        targets = self._targets(layers, sums)
        scale = None
        if self._method.scales and layers.quantizable:
            scale = self._search_last(part, targets, sums)
            scale = Scale(self._fold_into_source(part, scale.factors), scale.alpha)
        self._store(part.last, layers, targets, sums, scale, ())

    @property
    def _shifted(self) -> bool:
        return self._method.inputs == 'corrected'

    def _targets(self, layers: _Layers, sums: Optional[Statistics]) -> list[Tensor]:
        if sums is None:
            return layers.weights
        return sums.targets(layers.weights)

    def _candidates(self, magnitude: Tensor, weights: Sequence[Tensor]) -> Iterator[Scale]:
        return candidates(magnitude, weights, self._spec, self._method.alpha_one,
                          self._method.weight_magnitude)

    def _search_first(self, part: Part, layers: _Layers, targets: Sequence[Tensor],
                      sums: Statistics, search: Sequence[tuple[Tensor, Tensor]]) -> Scale:
        """Try scales by the error of the whole part's output."""
        def outputs(weights: Sequence[Tensor]) -> list[Tensor]:
            linears = [replace(layer, weight=weight)
                       for layer, weight in zip(layers.linears, weights)]
            block = replace(self.current, **{part.first: tuple(linears)})
            return [reference.linear(part.hidden(block, x, self._scratch),
                                     getattr(block, part.last).weight) for x, _ in search]

        wanted = outputs(targets)
        total = sum(out.numel() for out in wanted)

        def loss(factors: Tensor) -> float:
            found = outputs([rounded(weight * factors, self._spec) / factors
                             for weight in targets])
            return sum(float((a - b).pow(2).sum()) for a, b in zip(found, wanted)) / total

        return best_scale(self._candidates(sums.magnitude / sums.count, targets), loss)

    def _search_last(self, part: Part, targets: Sequence[Tensor], sums: Statistics) -> Scale:
        """Try scales by the error of the linear's output, which the Hessian gives exactly."""
        weight = targets[0]

        def loss(factors: Tensor) -> float:
            error = rounded(weight * factors, self._spec) / factors - weight
            return float(((error @ sums.hessian) * error).sum())

        scales = (Scale(self._share(part, scale.factors), scale.alpha) for scale in
                  self._candidates(self._share(part, sums.magnitude / sums.count), targets))
        return best_scale(scales, loss)

    def _by_head(self, part: Part, value: Tensor) -> Tensor:
        """View a value [K] as [heads of the source, query heads that read one, channels]."""
        if not part.shared_heads:
            return value.view(1, 1, -1)
        return value.view(-1, self._shared_queries, self._scratch.cache.k.shape[2])

    def _share(self, part: Part, value: Tensor) -> Tensor:
        """Make a value [K] equal for all query heads of one KV head."""
        by_head = self._by_head(part, value)
        return by_head.mean(1, keepdim=True).expand_as(by_head).reshape(-1)

    def _fold_into_source(self, part: Part, factors: Tensor) -> Tensor:
        """
        Divide the rows that feed the last linear by its scale and return the scale they took.

        A channel keeps a factor 1 if fp16 could not hold its row otherwise.
        """
        name = f'{self._prefix}{part.first_names[part.source]}'
        linears = list(getattr(self.current, part.first))
        source = linears[part.source]
        stored = self.tensors.get(name)
        values = source.weight if stored is None else stored.scales.float()
        by_head = self._by_head(part, factors)
        rows = by_head[:, 0].reshape(-1)
        rows = torch.where(_fp16_holds(values, source.bias, rows), rows, torch.ones_like(rows))
        folded = (values / rows[:, None]).half()
        if stored is None:
            self.tensors[f'{name}.weight'], weight = folded, folded.float()
        else:
            stored = self.tensors[name] = replace(stored, scales=folded)
            weight = stored.dequantize()
        linears[part.source] = self._with_bias(name, weight, source.bias, 1 / rows)
        self.current = replace(self.current, **{part.first: tuple(linears)})
        return rows.view(len(by_head), 1, -1).expand_as(by_head).reshape(-1)

    def _store(self, field: str, layers: _Layers, targets: Sequence[Tensor],
               sums: Optional[Statistics], scale: Optional[Scale],
               unclipped: Sequence[int]) -> None:
        """Turn the linears of a field into what is stored and what the next part will see."""
        linears = []
        for index, (name, layer) in enumerate(zip(layers.names, layers.linears)):
            factors = torch.ones_like(layer.weight[0]) if scale is None else scale.factors
            full_name = f'{self._prefix}{name}'
            stored: StoredWeight
            if layers.quantizable:
                clip = self._method.clip and index not in unclipped
                stored = self._codes(targets[index] * factors, sums, factors, clip)
                self.tensors[full_name] = stored
                weight = stored.dequantize()
            else:
                stored = self.tensors[f'{full_name}.weight'] = (layer.weight * factors).half()
                weight = stored.float()
            linears.append(self._with_bias(full_name, weight, layer.bias, None))
            self.results.append(self._result(
                full_name, stored, layer.weight, weight / factors, sums, index,
                None if scale is None else scale.alpha, layers.note))
        single = isinstance(getattr(self.current, field), Linear)
        self.current = replace(self.current, **{field: linears[0] if single else tuple(linears)})

    def _codes(self, weight: Tensor, sums: Optional[Statistics], factors: Tensor,
               clip: bool) -> QuantizedWeight:
        """Round a scaled weight."""
        if clip or self._method.feedback:
            # The inputs of a scaled weight are divided by its scale.
            hessian = (sums.hessian / factors).div_(factors[:, None])
        grid = fit_clipped_grid(weight, hessian, self._spec) if clip else None
        if self._method.feedback:
            codes, grid = codes_with_feedback(weight, hessian, self._spec, grid,
                                              self._method.act_order)
        else:
            grid = grid or fit_grid(weight, self._spec)
            codes = nearest_codes(weight, grid, self._spec)
        return packed(codes, grid, self._spec)

    def _with_bias(self, name: str, weight: Tensor, bias: Optional[Tensor],
                   factors: Optional[Tensor]) -> Linear:
        if bias is None:
            return Linear(weight)
        stored = (bias if factors is None else bias * factors).half()
        self.tensors[f'{name}.bias'] = stored
        return Linear(weight, stored.float())

    def _result(self, name: str, stored: StoredWeight, original: Tensor, weight: Tensor,
                sums: Optional[Statistics], index: int, alpha: Optional[float],
                note: str) -> LayerResult:
        n, k = original.shape
        quantized = isinstance(stored, QuantizedWeight)
        loss = loss_rtn = None
        if sums is not None:
            loss = sums.loss(index, weight, original)
            plain = rounded(original, self._spec) if quantized else weight
            loss_rtn = sums.loss(index, plain, original)
        tensors = tensors_of(stored).values() if quantized else [stored]
        return LayerResult(
            name=name, n=n, k=k, bits=self._spec.bits if quantized else 16,
            group_size=stored.group_size if quantized else None, loss_rtn=loss_rtn, loss=loss,
            alpha=alpha, bytes_before=2 * n * k, note=note,
            bytes_after=sum(t.numel() * t.element_size() for t in tensors))


class _Layers:
    """Linears that share an input, and whether the format can hold them."""

    def __init__(self, names: Sequence[str], linears: Sequence[Linear], spec: WeightSpec) -> None:
        self.names, self.linears = names, linears
        self.weights = [layer.weight for layer in linears]
        # vLLM joins linears that share an input, and refuses to join plain and quantized ones.
        self.note = next(filter(None, (why_left(*w.shape, spec) for w in self.weights)), '')
        self.quantizable = not self.note


def why_left(n: int, k: int, spec: WeightSpec) -> str:
    """Return why a weight [n, k] stays in fp16, or ''."""
    if k % spec.group(k) or k % 8:
        return (f'left in fp16: K = {k} is not a multiple of '
                f"{'8' if k % 8 else f'the group size {spec.group_size}'}")
    if n % AWQ_COLUMNS:
        return f'left in fp16: N = {n} is not a multiple of {AWQ_COLUMNS}'
    return ''


def _fp16_holds(values: Tensor, bias: Optional[Tensor], factors: Tensor) -> Tensor:
    """Say for each row of values [N, C] whether fp16 has 8 bits of it divided by its factor."""
    folded = values / factors[:, None]
    error = (folded.half().float() - folded).abs().amax(1)
    holds = error <= folded.abs().amax(1) * 2**-8
    return holds if bias is None else holds & torch.isfinite((bias / factors).half())


def fold_into_norm(norm: Norm, factors: Tensor) -> tuple[Norm, Tensor]:
    """Divide a norm by factors [H]; return it and the factors that its fp16 weight stands for."""
    weight = (norm.weight / factors).half().float()
    usable = (weight != 0) & torch.isfinite(weight) & (norm.weight != 0)
    exact = torch.where(usable, norm.weight / weight, torch.ones_like(weight))
    return Norm(torch.where(usable, weight, norm.weight), norm.eps), exact
