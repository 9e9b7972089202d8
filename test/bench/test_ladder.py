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
"""The rungs compute one function; what they are called faster than is arithmetic."""

import pytest
from tiny_models import llama_config, one_thread  # noqa: F401
import torch

from tinychat_ros.bench import ladder
from tinychat_ros.bench.eager import Decoder, filled_cache, MERGED, PlainWeights, STATIC_CACHE
from tinychat_ros.bench.shapes import RandomWeights
from tinychat_ros.kernels.linear import Linear
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.causal_lm import CausalLM

_CPU = torch.device('cpu')
_TOKENS = [1, 7, 3, 90]


def _weights(**changes) -> PlainWeights:
    """Return weights of a small shape, its norms not ones."""
    source = RandomWeights(_CPU, torch.float32)
    weights = PlainWeights(ModelConfig.from_dict(llama_config(**changes)), source)
    for layer in weights.layers:
        layer.attention_norm.normal_(1, 0.2)
        layer.mlp_norm.normal_(1, 0.2)
    return weights


class _Source:
    """Hands the weights of a PlainWeights to a CausalLM."""

    def __init__(self, weights: PlainWeights) -> None:
        self._named = {'model.embed_tokens.weight': weights.embedding,
                       'model.norm.weight': weights.norm, 'lm_head': weights.lm_head}
        for index, layer in enumerate(weights.layers):
            block = {'input_layernorm.weight': layer.attention_norm,
                     'post_attention_layernorm.weight': layer.mlp_norm,
                     'self_attn.q_proj': layer.qkv, 'self_attn.o_proj': layer.o_proj,
                     'mlp.gate_proj': layer.gate_up, 'mlp.down_proj': layer.down_proj}
            self._named.update({f'model.layers.{index}.{k}': v for k, v in block.items()})

    def tensor(self, name, shape):
        return self._named[name]

    def linears(self, names, out_features, in_features, order=None, rows=None):
        return (Linear(self._named[names[0]]),)


@pytest.mark.parametrize('context', [0, 5])
@pytest.mark.parametrize('kv_heads', [4, 2, 1])
@pytest.mark.parametrize('techniques', [(), (STATIC_CACHE,), (STATIC_CACHE, MERGED), (MERGED,)],
                         ids=' + '.join)
def test_a_rung_without_kernels_gives_the_logits_of_the_product(techniques, kv_heads, context):
    weights = _weights(num_key_value_heads=kv_heads)
    past = ladder.random_past(weights.config, context, _CPU, torch.float32)
    model = CausalLM(weights.config, _Source(weights), 16, _CPU)
    expected = model.forward(torch.tensor(_TOKENS), filled_cache(weights.config, past, 16), 0,
                             context, all_logits=True)
    decoder = Decoder(weights, past, techniques, 16)
    found = torch.cat([decoder.logits(torch.tensor([token])) for token in _TOKENS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_goes_on_with_its_own_greedy_tokens():
    weights = _weights()
    past = ladder.random_past(weights.config, 3, _CPU, torch.float32)
    generated = Decoder(weights, past, (), 16).tokens(1)
    tokens = [1, *(next(generated) for _ in range(6))]
    fed = Decoder(weights, past, (STATIC_CACHE, MERGED), 16)
    assert tokens[1:] == [int(fed.logits(torch.tensor([t])).argmax()) for t in tokens[:-1]]
    assert len(set(tokens)) > 2


def test_separate_matrices_are_views_of_the_merged_ones():
    layer = _weights().layers[0]
    layer.qkv.zero_()
    layer.gate_up.zero_()
    assert not any(matrix.any() for matrix in (*layer.q_k_v, *layer.gate_and_up))


def test_a_cpu_runs_what_needs_no_kernel_and_says_why_it_leaves_out_the_rest():
    config = ModelConfig.from_dict(llama_config())
    rungs = ladder.ladder(config, _CPU, torch.float32, context=6, tokens=3)
    assert [rung.name for rung in rungs] == [*ladder.PLAIN, *ladder.PRODUCT]
    for rung in rungs:
        measured = rung.name in ladder.WITHOUT_KERNELS
        assert rung.left_out == ('' if measured else 'no kernel for cpu')
        assert measured == (rung.milliseconds is not None)


def test_each_rung_is_compared_with_the_one_before_it_that_was_measured():
    rungs = ladder.compare({ladder.EAGER: 20.0, ladder.STATIC_CACHE: 10.0, ladder.MERGED: 8.0},
                           'no kernel for cpu')
    first, second, norms, _, merged, *_ = rungs
    assert (first.tokens_per_second, first.over_previous, first.over_first) == (50, 1, 1)
    assert (second.over_previous, second.over_first) == (2, 2)
    assert (norms.milliseconds, norms.left_out) == (None, 'no kernel for cpu')
    assert (merged.over_previous, merged.over_first) == (1.25, 2.5)


def test_the_table_has_a_line_of_each_rung():
    text = ladder.table(ladder.compare({ladder.EAGER: 20.0, ladder.MERGED: 8.0}, 'no GPU'))
    head, eager, static, *_ = text.splitlines()
    assert len(text.splitlines()) == 1 + len(ladder.PLAIN) + len(ladder.PRODUCT)
    assert head.split()[:3] == ['technique', 'ms/token', 'tokens/s']
    assert eager.split()[2:] == ['20.000', '50.0', '1.00x', '1.00x']
    assert static.startswith(ladder.STATIC_CACHE) and static.endswith('left out: no GPU')
