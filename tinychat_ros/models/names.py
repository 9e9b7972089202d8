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
"""Where checkpoints keep a decoder's tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Names:
    """
    The names of a decoder's modules; the defaults are Llama's.

    Those after ``lm_head`` stand below a block. A module that a family does not have is ''.

    :param qkv: one name, where the checkpoint holds the three as one matrix.
    :param gate_up: likewise; the up projection alone, where there is no gate.
    :param mlp_scales: the tensor that divides what the activation gives, if it is there.
    """

    blocks: str = 'model.layers'
    embedding: str = 'model.embed_tokens'
    norm: str = 'model.norm'
    lm_head: str = 'lm_head'
    attention_norm: str = 'input_layernorm'
    qkv: tuple[str, ...] = ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj')
    q_norm: str = ''
    k_norm: str = ''
    o_proj: str = 'self_attn.o_proj'
    attention_post_norm: str = ''
    mlp_norm: str = 'post_attention_layernorm'
    gate_up: tuple[str, ...] = ('mlp.gate_proj', 'mlp.up_proj')
    mlp_scales: str = ''
    down_proj: str = 'mlp.down_proj'
    mlp_post_norm: str = ''

    def below(self, model: str, lm_head: str = 'lm_head') -> Names:
        """Return these names of a decoder that is a part of a larger model."""
        return replace(self, blocks=f'{model}.layers', embedding=f'{model}.embed_tokens',
                       norm=f'{model}.norm', lm_head=lm_head)
