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
from itertools import islice
from typing import Callable, Iterator, Mapping, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.linear import concatenate, Linear, StoredWeight
from tinychat_ros.kernels.packing import QuantizedWeight, tensors_of
from tinychat_ros.kernels.rtn import (
    fit_grid, nearest_codes, packed, rounded, WeightSpec)
from tinychat_ros.models.block import Block
from tinychat_ros.quantization.awq import best_scale, candidates, fit_clipped_grid, Scale
from tinychat_ros.quantization.folding import (
    as_stored, fold_into_norm, fp16_holds, norm_tensors)
from tinychat_ros.quantization.gptq import codes_with_feedback
from tinychat_ros.quantization.method import Method
from tinychat_ros.quantization.recipes import by_norm, Part, Scratch, Step
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
    """

    def __init__(self, block: Block, prefix: str, spec: WeightSpec, method: Method,
                 scratch: Scratch) -> None:
        self.original = self.current = block
        self.tensors: dict[str, StoredWeight] = {}
        self.results: list[LayerResult] = []
        self._prefix, self._spec, self._method = prefix, spec, method
        self._scratch = scratch

    def quantize(self, step: Step, inputs: Optional[Inputs], search: Optional[Inputs]) -> None:
        """
        Quantize the linears of the parts that read one x.

        :param inputs: all calibration sequences; None where the method needs none.
        :param search: those on which scales are tried.
        """
        for parts in by_norm(step):
            self._first(parts, inputs, search)
            for part in parts:
                self._last(part, inputs)

    def _first(self, parts: Step, inputs: Optional[Inputs], search: Optional[Inputs]) -> None:
        """Quantize what reads one norm."""
        layers = _Layers(self.original, {part.first: part.first_names for part in parts},
                         self._spec)
        norm, offset = getattr(self.original, parts[0].norm), parts[0].norm_offset
        sums = None
        if inputs is not None and layers.quantizable:
            pairs = ((reference.normalize(x, norm), reference.normalize(x0, norm))
                     for x, x0 in inputs())
            sums = gather(self._prefix + layers.names[0], pairs, layers.weights, self._shifted)
        targets = self._targets(layers, sums)
        scale = None
        if self._method.scales and layers.quantizable:
            scale = self._search_first(parts, layers, targets, sums, list(search()))
            norm, factors = fold_into_norm(norm, scale.factors, offset)
            scale = Scale(factors, scale.alpha)
        self.tensors.update(norm_tensors(self._prefix + parts[0].norm_name, norm, offset))
        self.current = replace(self.current, **{
            part.norm: as_stored(norm, offset) for part in parts})
        unclipped = [0 if self._method.clip_all else rows
                     for part in parts for rows in part.unclipped]
        self._store(layers, targets, sums, scale, unclipped)

    def _last(self, part: Part, inputs: Optional[Inputs]) -> None:
        layers = _Layers(self.original, {part.last: (part.last_name,)}, self._spec)
        sums = None
        if inputs is not None and layers.quantizable:
            seen = self.original if self._method.inputs == 'original' else self.current
            pairs = ((part.hidden(seen, x, self._scratch),
                      part.hidden(self.original, x0, self._scratch) if self._shifted else x0)
                     for x, x0 in inputs())
            sums = gather(self._prefix + part.last_name, pairs, layers.weights, self._shifted)
        targets = self._targets(layers, sums)
        scale = None
        if self._method.scales and layers.quantizable and part.takes_scale:
            scale = self._search_last(part, targets, sums)
            fold = self._fold_into_source if part.source_rows else self._fold_into_scales
            scale = Scale(fold(part, scale.factors), scale.alpha)
        elif part.scales_name:
            # transformers divides by it even where there is none, and then by what it finds.
            self._fold_into_scales(part, torch.ones_like(layers.weights[0][0]))
        self._store(layers, targets, sums, scale, [0])

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

    def _search_first(self, parts: Step, layers: _Layers, targets: Sequence[Tensor],
                      sums: Statistics, search: Sequence[tuple[Tensor, Tensor]]) -> Scale:
        """Try scales by the error of what the parts add."""
        def outputs(weights: Sequence[Tensor]) -> list[Tensor]:
            block = layers.put_into(self.current, [
                replace(layer, weight=weight) for layer, weight in zip(layers.linears, weights)])
            return [sum(part.added(block, x, self._scratch) for part in parts)
                    for x, _ in search]

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

    def _share(self, part: Part, value: Tensor) -> Tensor:
        """Make a value [K] equal for all query heads of one KV head."""
        by_head = value.view(*part.heads, -1)
        return by_head.mean(1, keepdim=True).expand_as(by_head).reshape(-1)

    def _fold_into_source(self, part: Part, factors: Tensor) -> Tensor:
        """
        Divide the rows that feed the last linear by its scale and return the scale they took.

        A channel keeps a factor 1 if fp16 could not hold its row otherwise.
        """
        name = f'{self._prefix}{part.first_names[-1]}'
        *others, source = getattr(self.current, part.first)
        stored = self.tensors.get(name)
        values = source.weight if stored is None else stored.scales.float()
        by_head = factors.view(*part.heads, -1)
        rows = torch.ones_like(values[:, 0])
        rows[-part.source_rows:] = by_head[:, 0].reshape(-1)
        rows = torch.where(fp16_holds(values, source.bias, rows), rows, torch.ones_like(rows))
        folded = (values / rows[:, None]).half()
        if stored is None:
            self.tensors[f'{name}.weight'], weight = folded, folded.float()
        else:
            stored = self.tensors[name] = replace(stored, scales=folded)
            weight = stored.dequantize()
        source = self._with_bias(name, weight, source.bias, 1 / rows)
        self.current = replace(self.current, **{part.first: (*others, source)})
        taken = rows[-part.source_rows:].view(len(by_head), 1, -1)
        return taken.expand_as(by_head).reshape(-1)

    def _fold_into_scales(self, part: Part, factors: Tensor) -> Tensor:
        """Divide what the activation gives by a scale and return the one that fp16 has of it."""
        before = self.original.mlp_scales
        before = torch.ones_like(factors) if before is None else before
        stored = (before * factors).half()
        usable = torch.isfinite(stored) & (stored != 0)
        stored = torch.where(usable, stored, torch.ones_like(stored))
        self.tensors[f'{self._prefix}{part.scales_name}'] = stored
        self.current = replace(self.current, mlp_scales=stored.float())
        return stored.float() / before

    def _store(self, layers: _Layers, targets: Sequence[Tensor], sums: Optional[Statistics],
               scale: Optional[Scale], unclipped: Sequence[int]) -> None:
        """Turn linears into what is stored and what the next part will see."""
        linears = []
        for index, (name, layer) in enumerate(zip(layers.names, layers.linears)):
            factors = torch.ones_like(layer.weight[0]) if scale is None else scale.factors
            full_name = f'{self._prefix}{name}'
            stored: StoredWeight
            if layers.quantizable:
                target, top = targets[index] * factors, unclipped[index]
                stored = self.tensors[full_name] = concatenate([
                    self._codes(rows, sums, factors, self._method.clip and clip)
                    for rows, clip in ((target[:top], False), (target[top:], True)) if len(rows)])
                weight = stored.dequantize()
            else:
                stored = self.tensors[f'{full_name}.weight'] = (layer.weight * factors).half()
                weight = stored.float()
            linears.append(self._with_bias(full_name, weight, layer.bias, None))
            self.results.append(self._result(
                full_name, stored, layer.weight, weight / factors, sums, index,
                None if scale is None else scale.alpha, layers.note))
        self.current = layers.put_into(self.current, linears)

    def _codes(self, weight: Tensor, sums: Optional[Statistics], factors: Tensor,
               clip: bool) -> QuantizedWeight:
        """Round rows of a scaled weight."""
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
    """
    Linears that share an input, and whether the format can hold them.

    :param fields: of the block, with the names of their linears in the checkpoint.
    """

    def __init__(self, block: Block, fields: Mapping[str, Sequence[str]],
                 spec: WeightSpec) -> None:
        self._fields = fields
        self.names = [name for names in fields.values() for name in names]
        self.linears = [layer for field in fields for layer in _linears(block, field)]
        self.weights = [layer.weight for layer in self.linears]
        # vLLM joins linears that share an input, and refuses to join plain and quantized ones.
        self.note = next(filter(None, (why_left(*w.shape, spec) for w in self.weights)), '')
        self.quantizable = not self.note

    def put_into(self, block: Block, linears: Sequence[Linear]) -> Block:
        """Return a block with others in their places."""
        rest = iter(linears)
        fields = {field: tuple(islice(rest, len(names)))
                  for field, names in self._fields.items()}
        return replace(block, **{
            field: found[0] if isinstance(getattr(block, field), Linear) else found
            for field, found in fields.items()})


def _linears(block: Block, field: str) -> tuple[Linear, ...]:
    found = getattr(block, field)
    return (found,) if isinstance(found, Linear) else found


def why_left(n: int, k: int, spec: WeightSpec) -> str:
    """Return why a weight [n, k] stays in fp16, or ''."""
    if k % spec.group(k) or k % 8:
        return (f'left in fp16: K = {k} is not a multiple of '
                f"{'8' if k % 8 else f'the group size {spec.group_size}'}")
    if n % AWQ_COLUMNS:
        return f'left in fp16: N = {n} is not a multiple of {AWQ_COLUMNS}'
    return ''
