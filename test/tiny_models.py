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
"""Small random Llama checkpoints, written with safetensors alone, and the way to the test data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

import pytest
from safetensors.torch import load_file, save_file
import tokenizers
import torch
from torch import Tensor

from tinychat_ros.checkpoint.loader import load_model
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.kernels.rtn import quantize_rtn
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.causal_lm import CausalLM

_DATA = Path(os.environ.get('TINYCHAT_TEST_DATA',
                            Path(__file__).resolve().parents[2] / 'shared' / 'data'))

SPECIAL_TOKENS = ('<s>', '</s>', '<|system|>', '<|user|>', '<|assistant|>')
CHAT_TEMPLATE = ('{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}'
                 '{% if add_generation_prompt %}<|assistant|>{% endif %}')


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: on a busy machine, small models crawl on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data_path(name: str) -> Path:
    """Return a file or folder of the test data, or skip the test where it is absent."""
    path = _DATA / name
    if not path.exists():
        pytest.skip(f'the test data {name} is not here')
    return path


def llama_config(**changes: Any) -> dict[str, Any]:
    """Return the contents of a config.json; a change to None leaves the key out."""
    config = {
        'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': 96,
        'hidden_size': 64, 'intermediate_size': 128, 'num_hidden_layers': 2,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 16,
        'max_position_embeddings': 64, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
        'hidden_act': 'silu', 'tie_word_embeddings': False, **changes}
    return {key: value for key, value in config.items() if value is not None}


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (N, K) of every linear of the decoder blocks."""
    hidden, inter = config['hidden_size'], config['intermediate_size']
    q = config['num_attention_heads'] * config['head_dim']
    kv = config['num_key_value_heads'] * config['head_dim']
    block = {'self_attn.q_proj': (q, hidden), 'self_attn.k_proj': (kv, hidden),
             'self_attn.v_proj': (kv, hidden), 'self_attn.o_proj': (hidden, q),
             'mlp.gate_proj': (inter, hidden), 'mlp.up_proj': (inter, hidden),
             'mlp.down_proj': (hidden, inter)}
    return {f'model.layers.{i}.{name}': shape for i in range(config['num_hidden_layers'])
            for name, shape in block.items()}


def llama_tensors(config: Mapping[str, Any], seed: int = 0,
                  dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return random tensors under Hugging Face's names, with biases where the config has them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.1) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    hidden, vocab = config['hidden_size'], config['vocab_size']
    tensors = {'model.embed_tokens.weight': random(vocab, hidden, scale=1.0),
               'model.norm.weight': random(hidden) + 1}
    for name, (n, k) in linear_shapes(config).items():
        tensors[f'{name}.weight'] = random(n, k)
        if config.get('attention_bias' if 'attn' in name else 'mlp_bias'):
            tensors[f'{name}.bias'] = random(n)
    for i in range(config['num_hidden_layers']):
        for norm in ('input_layernorm', 'post_attention_layernorm'):
            tensors[f'model.layers.{i}.{norm}.weight'] = random(hidden) + 1
    if not config.get('tie_word_embeddings'):
        tensors['lm_head.weight'] = random(vocab, hidden)
    return tensors


def write_model(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write config.json and model.safetensors, and return the folder."""
    path.mkdir(parents=True, exist_ok=True)
    (path / 'config.json').write_text(json.dumps(config))
    save_file(dict(tensors), path / 'model.safetensors', metadata={'format': 'pt'})
    return path


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of 256 bytes and SPECIAL_TOKENS, ids from 256 on, and a template."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path / 'tokenizer.json'))
    (path / 'tokenizer_config.json').write_text(json.dumps({
        'bos_token': '<s>', 'eos_token': '</s>', 'chat_template': CHAT_TEMPLATE}))


def write_chat_model(path: Path, **changes: Any) -> Path:
    """Write a whole checkpoint that an engine can load: random weights, bytes as tokens."""
    config = llama_config(**{'vocab_size': 256 + len(SPECIAL_TOKENS),
                             'max_position_embeddings': 512, **changes})
    write_model(path, config, llama_tensors(config))
    write_tokenizer(path)
    return path


def quantize_folder(source: Path, out: Path, group: int) -> Path:
    """Write a checkpoint with the linears of its blocks rounded to 4 bits; return the folder."""
    config = json.loads((source / 'config.json').read_text())
    tensors = load_file(source / 'model.safetensors')
    for name in linear_shapes(config):
        tensors[name] = quantize_rtn(tensors.pop(f'{name}.weight'), group)
    extras = [source / name for name in (
        'generation_config.json', 'tokenizer.json', 'tokenizer_config.json')
        if (source / name).exists()]
    save_checkpoint(out, config, tensors, extras)
    return out


def load_folder(path: Path, dtype: torch.dtype = torch.float32,
                int8_activations: Optional[bool] = False,
                device: torch.device = torch.device('cpu'), max_seq_len: int = 0,
                **options: Any) -> CausalLM:
    """Load a folder, with its whole context unless told otherwise; see load_model."""
    with CheckpointReader(path) as reader:
        return load_model(reader, dtype, device,
                          max_seq_len or reader.config.max_position_embeddings,
                          int8_activations, **options)[0]


def run_model(model: CausalLM, token_ids: Sequence[int], piece: int = 0) -> Tensor:
    """Return the logits fp32 [T, V] of a text that is fed in pieces; 0 feeds it whole."""
    weight = model.embedding
    cache = KVCache(model.config, 1, len(token_ids), model.dtype, weight.device)
    piece = piece or len(token_ids)
    ids = torch.tensor(token_ids, device=weight.device)
    return torch.cat([model.forward(ids[start:start + piece], cache, 0, start, all_logits=True)
                      for start in range(0, len(ids), piece)])
