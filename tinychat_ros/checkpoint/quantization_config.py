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
"""The ``quantization_config`` of config.json, by which transformers and vLLM load the rest."""

from __future__ import annotations

from typing import Any, Sequence


def awq_config(group_size: int, not_converted: Sequence[str]) -> dict[str, Any]:
    """
    Describe a checkpoint with 4-bit layers in AutoAWQ's ``gemm`` format.

    ``quant_method`` picks the reader; ``version`` the order of its values, which transformers 5
    also calls ``format``; ``zero_point`` says that groups have zero points of their own;
    ``modules_to_not_convert`` names the linears that keep a plain ``weight``. The output matrix
    is left alone by every reader, named or not.

    :param group_size: G of all layers; -1 is one group per row.
    :param not_converted: full names of plain linears in the blocks. transformers matches them as
        prefix or suffix, vLLM as a part of the name. vLLM joins q, k and v, and gate and up, and
        refuses a model where only some of those joined are plain.
    """
    return {'quant_method': 'awq', 'bits': 4, 'group_size': group_size, 'zero_point': True,
            'version': 'gemm', 'modules_to_not_convert': list(not_converted) or None}


def w3_config(group_size: int, not_converted: Sequence[str]) -> dict[str, Any]:
    """Describe a checkpoint with 3-bit layers in ``tinychat-w3``, which only this engine reads."""
    return {**awq_config(group_size, not_converted), 'quant_method': 'tinychat', 'bits': 3,
            'version': 'w3'}


def w8a8_config(ignore: Sequence[str]) -> dict[str, Any]:
    """
    Describe a checkpoint with int8 layers in compressed-tensors' ``int-quantized`` format.

    ``format`` says how the tensors lie, and ``quantization_status`` that they lie so already; the
    group's ``targets`` is the class of the layers it is for. Its weights are symmetric with one
    scale for each output channel, its ``input_activations`` symmetric with one scale for each
    token, found at run time (``dynamic``), so that no scale of theirs is stored. ``ignore`` names
    the linears that keep a plain ``weight``, the output matrix first: it is a linear too, even
    where it is the embedding.

    :param ignore: full names of plain linears in the blocks; as in :func:`awq_config`, vLLM
        refuses a model where only some of those that it joins are plain.
    """
    int8 = {'num_bits': 8, 'type': 'int', 'symmetric': True}
    return {'quant_method': 'compressed-tensors', 'format': 'int-quantized',
            'quantization_status': 'compressed', 'ignore': ['lm_head', *ignore],
            'config_groups': {'group_0': {
                'targets': ['Linear'],
                'weights': {**int8, 'strategy': 'channel', 'dynamic': False},
                'input_activations': {**int8, 'strategy': 'token', 'dynamic': True}}}}
