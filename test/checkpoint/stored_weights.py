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
"""Quantized layers stored one element at a time, by the formula of each format."""

from __future__ import annotations

from dataclasses import dataclass
import json
from math import ceil
from pathlib import Path
from typing import Any, Mapping

from safetensors.torch import save_file
from tiny_models import linear_shapes, llama_config
import torch
from torch import Tensor

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.kernels.packing import QuantizedWeight, unpack_codes
from tinychat_ros.kernels.rtn import quantize_rtn


@dataclass(frozen=True)
class Codes:
    """A layer before it is stored: q uint8 [N, K], zeros uint8 and scales fp16 [N, K/G]."""

    q: Tensor
    zeros: Tensor
    scales: Tensor
    group: int

    @classmethod
    def random(cls, n: int, k: int, group: int) -> Codes:
        """Return random codes, with scales from the subnormal ones to 16; -1 is G = K."""
        group = k if group == -1 else group
        generator = torch.Generator().manual_seed(n * k + group)
        draw = (n, k // group)
        exponents = torch.rand(draw, generator=generator) * 24 - 20
        return cls(torch.randint(0, 16, (n, k), generator=generator, dtype=torch.uint8),
                   torch.randint(0, 16, draw, generator=generator, dtype=torch.uint8),
                   torch.exp2(exponents).half(), group)

    @classmethod
    def of(cls, weight: QuantizedWeight) -> Codes:
        """Return the codes of a weight in canonical form."""
        return cls(unpack_codes(weight.qweight, 4), weight.zeros, weight.scales, weight.group_size)

    def dequantize(self) -> Tensor:
        """Return w = (q - z) * s in fp32."""
        zeros, scales = (t.float().repeat_interleave(self.group, 1)
                         for t in (self.zeros, self.scales))
        return (self.q.float() - zeros) * scales


def zeros_width(k: int, group: int) -> int:
    """Return the int32 words that hold a row's zero points in the gemv formats."""
    multiple = {32: 4, 64: 2}.get(group, 1)
    return ceil(ceil(k / group / 8) / multiple) * multiple


def gemv(codes: Codes) -> dict[str, Tensor]:
    """Return the tensors of AutoAWQ ``gemv``, which are those of llm-awq v1."""
    n, k = codes.q.shape
    width = zeros_width(k, codes.group)
    scales = torch.zeros(n, 8 * width, dtype=torch.float16)
    scales[:, :k // codes.group] = codes.scales
    return {'qweight': _along_rows(codes.q, k // 8), 'scales': scales,
            'qzeros': _along_rows(codes.zeros, width)}


def gemv_fast(codes: Codes, zeros: str = 'scaled_zeros') -> dict[str, Tensor]:
    """Return the tensors of llm-awq v2, or of AutoAWQ ``gemv_fast`` with zeros = 'qzeros'."""
    n, k = codes.q.shape
    words = [[0] * k for _ in range(n // 4)]
    for i, row in enumerate(codes.q.tolist()):
        for j, value in enumerate(row):
            column = (64 * (j // 64) + 16 * (i % 4) + 8 * (j % 64 // 32) + 2 * (j % 8 // 2)
                      + j % 2)
            words[i // 4][column] |= value << 4 * (j % 32 // 8)
    scales = torch.zeros(8 * zeros_width(k, codes.group), n, dtype=torch.float16)
    scaled_zeros = torch.zeros_like(scales)
    scales[:k // codes.group] = codes.scales.t()
    scaled_zeros[:k // codes.group] = -(codes.scales.float() * codes.zeros).half().t()
    return {'qweight': torch.tensor(words, dtype=torch.int32).to(torch.int16), 'scales': scales,
            zeros: scaled_zeros}


def pack_quantized(codes: Codes, symmetric: bool = False) -> dict[str, Tensor]:
    """Return the tensors of compressed-tensors; symmetric leaves the zero points out."""
    n, k = codes.q.shape
    tensors = {'weight_packed': _along_rows(codes.q, ceil(k / 8)), 'weight_scale': codes.scales,
               'weight_shape': torch.tensor([n, k])}
    if not symmetric:
        packed = _along_rows(codes.zeros.t(), ceil(n / 8))
        tensors['weight_zero_point'] = packed.t().contiguous()
    return tensors


STORE = {'awq-gemv': gemv, 'awq-gemv-fast': gemv_fast, 'pack-quantized': pack_quantized}


def store_linears(config: Mapping[str, Any], tensors: Mapping[str, Tensor], group: int,
                  name: str) -> dict[str, Tensor]:
    """Return a model's tensors with the linears of its blocks rounded and stored in a format."""
    stored = dict(tensors)
    for layer in linear_shapes(config):
        codes = Codes.of(quantize_rtn(stored.pop(f'{layer}.weight'), group))
        stored.update({f'{layer}.{suffix}': t for suffix, t in STORE[name](codes).items()})
    return stored


def open_layer(path: Path, tensors: Mapping[str, Tensor], **config: Any) -> CheckpointReader:
    """Open a folder that holds these tensors of the layer ``l`` and no others."""
    (path / 'config.json').write_text(json.dumps({**llama_config(), **config}))
    save_file({f'l.{name}': t for name, t in tensors.items()}, path / 'model.safetensors')
    return CheckpointReader(path)


def check_read(reader: CheckpointReader, codes: Codes, name: str) -> None:
    """Assert that the layer ``l`` is of this format and comes back bit for bit."""
    n, k = codes.q.shape
    found = formats.detect(reader, 'l')
    assert (found.name, found.shape(reader, 'l')) == (name, (n, k, codes.group))
    weight = found.read(reader, 'l', n, k)
    assert weight.group_size == codes.group
    for got, expected in ((unpack_codes(weight.qweight, 4), codes.q), (weight.zeros, codes.zeros),
                          (weight.scales, codes.scales)):
        assert got.is_contiguous() and got.dtype == expected.dtype and torch.equal(got, expected)
    assert torch.equal(weight.dequantize(), codes.dequantize())


def _along_rows(values: Tensor, width: int) -> Tensor:
    """Return int32 [R, width]; value j of a row is nibble j % 8 of its word j // 8."""
    words = [[0] * width for _ in values]
    for row, line in zip(words, values.tolist()):
        for j, value in enumerate(line):
            row[j // 8] |= value << 4 * (j % 8)
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)
