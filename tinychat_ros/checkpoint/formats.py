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
How weights lie in a checkpoint: one row per format, told apart by the tensors that are there.

N = output features, K = input features, G = group size. w = (q - zero) * scale, no offset of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from torch import Tensor

from tinychat_ros.checkpoint.awq import (
    is_gemm, is_gemv, is_gemv_fast, read_awq_gemm, read_awq_gemv, read_awq_gemv_fast,
    shape_of_gemm, shape_of_gemv, shape_of_gemv_fast)
from tinychat_ros.checkpoint.int8 import read_w8a8
from tinychat_ros.checkpoint.pack_quantized import read_pack_quantized, shape_of_pack_quantized
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.tinychat_w3 import read_w3, shape_of_w3
from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.kernels.linear import StoredWeight


@dataclass(frozen=True)
class WeightFormat:
    """
    One way to store a linear's weight.

    :param suffixes: the tensors that follow the layer's name, the weight first; all of them make
        the format.
    :param read: (reader, layer's name, N, K) to the weight in canonical form.
    :param shape: (reader, layer's name) to (N, K, G) without reading the weight; G is None where
        there are no groups.
    :param matches: what tells it from the formats of the same suffixes that stand below.
    :param bits: of one weight.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[CheckpointReader, str, int, int], StoredWeight]
    shape: Callable[[CheckpointReader, str], tuple[int, int, Optional[int]]]
    matches: Callable[[CheckpointReader, str], bool] = lambda reader, name: True
    bits: int = 4


def read_plain(reader: CheckpointReader, name: str, n: int, k: int) -> Tensor:
    """Read an fp32, fp16 or bf16 ``weight`` [N, K]."""
    return reader.floats(f'{name}.weight', [n, k])


def shape_of_plain(reader: CheckpointReader, name: str) -> tuple[int, int, None]:
    """Return (N, K, None) of a layer without groups."""
    return *reader.matrix_shape(f'{name}.weight'), None


_AWQ = ('qweight', 'qzeros', 'scales')
FORMATS = (
    WeightFormat('awq-gemv-fast', ('qweight', 'scaled_zeros', 'scales'), read_awq_gemv_fast,
                 shape_of_gemv_fast),
    WeightFormat('awq-gemv-fast', _AWQ, read_awq_gemv_fast, shape_of_gemv_fast, is_gemv_fast),
    WeightFormat('awq-gemv', _AWQ, read_awq_gemv, shape_of_gemv, is_gemv),
    WeightFormat('awq-gemm', _AWQ, read_awq_gemm, shape_of_gemm, is_gemm),
    WeightFormat('pack-quantized', ('weight_packed', 'weight_scale', 'weight_shape'),
                 read_pack_quantized, shape_of_pack_quantized),
    WeightFormat('tinychat-w3', ('qweight3', 'scales', 'zeros'), read_w3, shape_of_w3, bits=3),
    WeightFormat('w8a8', ('weight', 'weight_scale'), read_w8a8, shape_of_plain, bits=8),
    WeightFormat('plain', ('weight',), read_plain, shape_of_plain, bits=16),
)
_WEIGHTS = tuple(dict.fromkeys(f.suffixes[0] for f in FORMATS))


def detect(reader: CheckpointReader, name: str) -> WeightFormat:
    """
    Return the format of one layer.

    :raises CheckpointError: none of its tensors is there.
    :raises UnsupportedModelError: they belong to no format of the table.
    """
    for weight_format in FORMATS:
        if (all(f'{name}.{suffix}' in reader.names for suffix in weight_format.suffixes)
                and weight_format.matches(reader, name)):
            return weight_format
    found = sorted(n for n in reader.names if n.startswith(f'{name}.') and n != f'{name}.bias')
    if not found:
        weights = ' or '.join(f'{name}.{suffix}' for suffix in _WEIGHTS)
        raise CheckpointError(f'{reader.path}: expected a tensor {weights}, and there is none')
    known = '; '.join(f"{f.name}: {', '.join(f.suffixes)}" for f in FORMATS)
    raise UnsupportedModelError(f"{name}: expected the tensors of one format ({known}), "
                                f"got {', '.join(found)}")


def layer_names(reader: CheckpointReader) -> set[str]:
    """Return the names of all layers whose weight is a matrix, embeddings among them."""
    parts = {name: name.rpartition('.') for name in reader.names}
    return {stem for name, (stem, _, suffix) in parts.items()
            if suffix in _WEIGHTS and len(reader.shape(name)) == 2}
