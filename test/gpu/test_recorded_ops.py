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
"""A recorded step of the ops that families of models ask for gives what they give one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tinychat_ros.kernels import cuda, ops
from tinychat_ros.kernels.linear import Linear, prepare
from tinychat_ros.kernels.packing import gate_up_order
from tinychat_ros.kernels.rtn import quantize_rtn

HIDDEN, INTERMEDIATE, VOCAB, ROOM, TOKENS = 512, 768, 1024, 301, 200
DEVICE = torch.device('cuda')


@pytest.fixture(autouse=True, scope='module')
def on_gpu(request) -> None:
    """Leave these tests out where the kernels run on the emulator."""
    if request.config.getoption('--device') != 'cuda':
        pytest.skip('needs a GPU and --device cuda')


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).half().to(DEVICE)


def linear(rows: int, columns: int, plain: bool, order=None) -> Linear:
    weight = torch.randn(rows, columns, device=DEVICE) * columns ** -0.5
    return Linear(weight.half()) if plain else prepare(quantize_rtn(weight, 64), order=order)


class Step:
    """A layer and both ends of a model, with every rule; only the device knows the position."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, int8: bool, plain: bool) -> None:
        self.state = torch.zeros(4, dtype=torch.int32, device=DEVICE)
        self.ids = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        self.table = random(VOCAB, HIDDEN)
        self.norm = ops.LayerNorm(random(HIDDEN), random(HIDDEN), 1e-5)
        self.post_norm = ops.Norm(random(HIDDEN), 1e-5)
        self.head_norm = ops.HeadNorm(random(head_dim), random(head_dim), 1e-5)
        self.scores = ops.Scores(head_dim ** -0.5, 77, 20.0, torch.rand(heads, device=DEVICE))
        angles = torch.rand(ROOM, head_dim // 2, device=DEVICE) * 6.28
        self.rope = ops.RotaryTable(angles.cos(), angles.sin())
        self.qkv = linear((heads + 2 * kv_heads) * head_dim, HIDDEN, plain)
        self.o_proj = linear(HIDDEN, heads * head_dim, plain)
        self.gate_up = linear(2 * INTERMEDIATE, HIDDEN, plain, gate_up_order(INTERMEDIATE))
        self.up = linear(INTERMEDIATE, HIDDEN, plain)
        self.up_scales = random(INTERMEDIATE).abs() + 0.5
        self.lm_head = linear(VOCAB, HIDDEN, plain)
        k, v = torch.zeros(2, kv_heads, ROOM, head_dim, device=DEVICE,
                           dtype=torch.int8 if int8 else torch.float16)
        scales = (torch.zeros(2, kv_heads, ROOM, device=DEVICE, dtype=torch.float16) if int8
                  else (None, None))
        self.cache = ops.LayerCache(k, v, *scales, cuda.attention_workspace(
            heads, kv_heads, head_dim, ROOM, DEVICE))
        self.found: list[Tensor] = []

    def run(self) -> None:
        """Leave what each op gives."""
        state = ops.StepState(self.state)
        x = ops.embedding(self.ids, self.table, torch.float16, 3.0)
        q = ops.qkv_rope_append(x, self.norm, [self.qkv], self.rope, self.cache, state,
                                self.head_norm, clip=2.0)
        seen = ops.attention(q, self.cache, state, self.scores)
        x = ops.linear_residual(seen, self.o_proj, x, self.post_norm)
        self.found = [
            q, seen, x, ops.norm_up(x, self.norm, self.up, 'gelu', self.up_scales),
            ops.norm_gate_up(x, self.norm, [self.gate_up], 'gelu_tanh'),
            *ops.candidates(x, self.norm, self.lm_head, softcap=30.0)]


@pytest.mark.parametrize('plain', [False, True], ids=['tiles', 'plain'])
@pytest.mark.parametrize('int8', [False, True], ids=['', 'int8'])
@pytest.mark.parametrize('heads, kv_heads, head_dim', [
    (8, 8, 80), (8, 4, 256), (71, 1, 64), (32, 32, 128)])
def test_a_recorded_step_gives_what_its_ops_give_one_by_one(heads, kv_heads, head_dim, int8,
                                                            plain):
    step = Step(heads, kv_heads, head_dim, int8, plain)
    replay = cuda.record(step.run)
    recorded = step.found
    for position in range(TOKENS):
        step.state[1], step.ids[0] = position, position * 7 % VOCAB
        replay()
        expected = [tensor.clone() for tensor in recorded]
        step.run()
        for tensor, again in zip(expected, step.found):
            assert torch.equal(tensor, again)
            assert tensor.isfinite().all()
