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
"""What the families of models ask of the ops runs on the emulated kernels, as the oracle says."""

from __future__ import annotations

from typing import Optional

import pytest
import torch
from torch import Tensor

from tinychat_ros.kernels import cuda, ops, reference
from tinychat_ros.kernels.linear import int8_rows, Linear, prepare
from tinychat_ros.kernels.packing import CudaTiles, gate_up_order, rotary_order, TileOrder
from tinychat_ros.kernels.rtn import quantize_rtn

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ROOM = 64, 6, 2, 16, 41
FP16 = torch.float16
ACTIVATIONS = pytest.mark.parametrize('activation', reference.ACTIVATIONS)
TOKENS = pytest.mark.parametrize('tokens', [1, 9], ids=['gemv', 'gemm'])
NORMS = pytest.mark.parametrize('norm_kind', ['rms', 'layer', 'layer without bias'])


def in_tiles(rows: int, order: Optional[TileOrder] = None) -> tuple[Linear, Linear]:
    """Return a linear with a bias for the kernels, and what its oracle is."""
    weight = quantize_rtn(torch.randn(rows, HIDDEN) * HIDDEN ** -0.5, 32)
    bias = torch.randn(rows).half()
    linear = prepare(weight, bias, order)
    assert isinstance(linear.weight, CudaTiles)
    return linear, Linear(weight.dequantize(), bias.float())


def norms(kind: str) -> tuple[ops.AnyNorm, ops.AnyNorm]:
    """Return a norm in fp16 and in fp32."""
    weight, bias = torch.rand(HIDDEN).half() + 0.5, torch.randn(HIDDEN).half()
    if kind == 'rms':
        return ops.Norm(weight, 1e-5), ops.Norm(weight.float(), 1e-5)
    if kind == 'layer':
        return (ops.LayerNorm(weight, bias, 1e-5),
                ops.LayerNorm(weight.float(), bias.float(), 1e-5))
    return ops.LayerNorm(weight, None, 1e-5), ops.LayerNorm(weight.float(), None, 1e-5)


def normalized(x: Tensor, norm: ops.AnyNorm, linear: Linear) -> Tensor:
    """Return in fp32 what the linear makes of the normalized x."""
    return reference.normalize(x.float(), norm) @ linear.weight.t() + linear.bias


def assert_close(found: Tensor, expected: Tensor) -> None:
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert error < 5e-3


@TOKENS
@NORMS
@ACTIVATIONS
def test_gate_and_up(emulated, activation, norm_kind, tokens):
    linear, oracle = in_tiles(96, gate_up_order(48))
    norm, norm32 = norms(norm_kind)
    x = torch.randn(tokens, HIDDEN).half()
    found = ops.norm_gate_up(x, norm, [linear], activation)
    assert_close(found, reference.gate_mul(normalized(x, norm32, oracle), activation))


@TOKENS
@NORMS
@ACTIVATIONS
@pytest.mark.parametrize('scaled', [False, True], ids=['', 'scaled'])
def test_up_alone(emulated, scaled, activation, norm_kind, tokens):
    linear, oracle = in_tiles(96)
    norm, norm32 = norms(norm_kind)
    x, scales = torch.randn(tokens, HIDDEN).half(), torch.rand(96).half() + 0.5 if scaled else None
    found = ops.norm_up(x, norm, linear, activation, scales)
    assert_close(found, reference.activate(normalized(x, norm32, oracle), activation, scales))


@TOKENS
@ACTIVATIONS
def test_an_mlp_of_plain_weights(emulated, activation, tokens):
    norm, norm32 = norms('layer')
    weight, x = torch.randn(96, HIDDEN).half() * 0.1, torch.randn(tokens, HIDDEN).half()
    products = reference.normalize(x.float(), norm32) @ weight.float().t()
    linears = [Linear(weight[:48]), Linear(weight[48:])]
    assert_close(ops.norm_gate_up(x, norm, linears, activation),
                 reference.gate_mul(products, activation))
    assert_close(ops.norm_up(x, norm, Linear(weight), activation),
                 reference.activate(products, activation, None))


@pytest.mark.parametrize('kind', ['tiles', 'plain', 'int8'])
@NORMS
@pytest.mark.parametrize('softcap', [0.0, 0.7])
def test_candidates(emulated, softcap, norm_kind, kind):
    weight = torch.randn(40, HIDDEN) * HIDDEN ** -0.5
    quantized = {'tiles': quantize_rtn(weight, 32), 'plain': weight.half(),
                 'int8': int8_rows(weight)}[kind]
    norm, norm32 = norms(norm_kind)
    x = torch.randn(1, HIDDEN).half()
    found = ops.candidates(x, norm, prepare(quantized), softcap)
    rows = weight if kind == 'plain' else quantized.dequantize()
    expected = (reference.normalize(x.float(), norm32) @ rows.t())[0]
    assert_close(found.logits, reference.softcap(expected, softcap) if softcap else expected)
    assert torch.equal(found.best, reference.candidates(found.logits).best)


@TOKENS
@NORMS
def test_a_norm_behind_a_linear(emulated, norm_kind, tokens):
    linear, oracle = in_tiles(HIDDEN)
    norm, norm32 = norms(norm_kind)
    x, residual = torch.randn(2, tokens, HIDDEN).half()
    found = ops.linear_residual(x, linear, residual, norm)
    products = x.float() @ oracle.weight.t() + oracle.bias
    assert_close(found, residual + reference.normalize(products, norm32))


def test_a_scaled_embedding(emulated):
    table, ids = torch.randn(9, HIDDEN).half(), torch.tensor([3, 8], dtype=torch.int32)
    assert torch.equal(ops.embedding(ids, table, FP16, 7.5), table[ids.long()] * 7.5)


class Attention:
    """The attention of one layer, by the kernels and by the oracle in fp32."""

    def __init__(self, int8: bool, order: Optional[TileOrder], norm_kind: str, rotates: bool,
                 head_norm: bool, clip: float, scores: ops.Scores) -> None:
        self.linear, self.oracle = in_tiles((HEADS + 2 * KV_HEADS) * HEAD_DIM, order)
        self.norm, self.norm32 = norms(norm_kind)
        angles = torch.rand(ROOM, HEAD_DIM // 2) * 6.28
        self.rope = ops.RotaryTable(angles.cos(), angles.sin()) if rotates else None
        weights = torch.rand(2, HEAD_DIM).half() + 0.5
        self.head_norm = ops.HeadNorm(*weights, 1e-5) if head_norm else None
        self.clip, self.scores = clip, scores
        self.cache = self._cache(torch.int8 if int8 else FP16)
        self.exact = self._cache(torch.float32)

    def step(self, start: int, tokens: int) -> None:
        """Compare the attention of tokens at positions that only the device knows."""
        x = torch.randn(tokens, HIDDEN).half()
        state = ops.StepState(ops.StepState.at(start, x.device).tensor)
        q = ops.qkv_rope_append(x, self.norm, [self.linear], self.rope, self.cache, state,
                                self.head_norm, self.clip)
        found = ops.attention(q, self.cache, state, self.scores)
        exact = x.float()
        head_norm = self.head_norm and ops.HeadNorm(
            self.head_norm.q.float(), self.head_norm.k.float(), self.head_norm.eps)
        q = ops.qkv_rope_append(exact, self.norm32, [self.oracle], self.rope, self.exact, start,
                                head_norm, self.clip)
        expected = ops.attention(q, self.exact, start, self.scores)
        error = (found.float() - expected).abs().max() / expected.abs().max()
        assert error < (5e-3 if self.cache.k_scale is None else 3e-2)

    def _cache(self, dtype: torch.dtype) -> ops.LayerCache:
        k, v = torch.zeros(2, KV_HEADS, ROOM, HEAD_DIM, dtype=dtype)
        scales = torch.zeros(2, KV_HEADS, ROOM, dtype=FP16) if dtype == torch.int8 else (None,) * 2
        workspace = None if dtype == torch.float32 else cuda.attention_workspace(
            HEADS, KV_HEADS, HEAD_DIM, ROOM, k.device)
        return ops.LayerCache(k, v, *scales, workspace)


SCALE = HEAD_DIM ** -0.5
ROTARY_ROWS = rotary_order(HEADS + KV_HEADS, KV_HEADS, HEAD_DIM)
FAMILIES = {
    'Mistral': (ROTARY_ROWS, 'rms', True, False, 0.0, ops.Scores(SCALE, window=8)),
    'Qwen 3': (ROTARY_ROWS, 'rms', True, True, 0.0, ops.Scores(SCALE)),
    'Gemma 2': (ROTARY_ROWS, 'rms', True, False, 0.0, ops.Scores(0.2, 8, softcap=5.0)),
    'Gemma 3': (None, 'rms', True, True, 0.0, ops.Scores(0.2, window=8)),
    'MPT': (None, 'layer without bias', False, False, 0.7,
            ops.Scores(SCALE, slopes=torch.tensor([0.5, 0.25, 0.125, 0.06, 0.03, 0.01]))),
    'Falcon': (ROTARY_ROWS, 'layer', True, False, 0.0, ops.Scores(SCALE)),
}


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
@pytest.mark.parametrize('family', FAMILIES)
def test_the_attention_of_a_family(emulated, family, int8):
    order, *rest = FAMILIES[family]
    attention, start = Attention(int8, order, *rest), 0
    for tokens in (13, 1, 4, 1, 1, 17):
        attention.step(start, tokens)
        start += tokens
