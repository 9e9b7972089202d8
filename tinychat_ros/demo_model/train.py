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
Train the demo model from nothing and write it in fp16 and in int4.

``python -m tinychat_ros.demo_model.train --out DIR`` draws the corpus, trains tokenizer and model,
writes ``DIR/fp16`` and ``DIR/int4`` and prints the exact match of both on held-out combinations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import time
from typing import Any

from tinychat_ros.checkpoint.quantization_config import awq_config
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.demo_model.corpus import held_out_dialogues, training_dialogues
from tinychat_ros.demo_model.evaluate import score
from tinychat_ros.demo_model.tokenizer import (
    ASSISTANT, assistant_mask, END_OF_TEXT, MESSAGE_END, rendered, save_tokenizer, train_tokenizer)
from tinychat_ros.demo_model.training import batches, Example, new_model, Recipe, train
from tinychat_ros.engine.engine import Engine
from tinychat_ros.quantization.rtn import quantize_rtn
from tokenizers import Tokenizer
import torch
from transformers import LlamaForCausalLM

VOCAB_SIZE = 1024
MAX_LENGTH = 1024
GROUP_SIZE = 128
# Added to the seed, so that the test draws other dialogues than the training.
HELD_OUT_SEED = 1_000_000


def examples_of(tokenizer: Tokenizer, texts: list[str]) -> list[Example]:
    """Tokenize rendered dialogues that fit the context and mark what the robot says."""
    start, end = tokenizer.encode(ASSISTANT).ids, tokenizer.token_to_id(MESSAGE_END)
    return [Example(encoding.ids, assistant_mask(encoding.ids, start, end))
            for encoding in tokenizer.encode_batch(texts) if len(encoding.ids) <= MAX_LENGTH]


def config_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json of the fp16 model."""
    return {
        'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': VOCAB_SIZE,
        'hidden_size': 256, 'intermediate_size': 640, 'num_hidden_layers': 5,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 64, 'hidden_act': 'silu',
        'max_position_embeddings': MAX_LENGTH, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
        'attention_bias': False, 'mlp_bias': False, 'tie_word_embeddings': True,
        'bos_token_id': None, 'eos_token_id': tokenizer.token_to_id(MESSAGE_END),
        'pad_token_id': tokenizer.token_to_id(END_OF_TEXT), 'torch_dtype': 'float16'}


def weights_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Return the fp16 weights by name, without the output matrix that is the embedding."""
    return {name: weight.detach().half() for name, weight in model.state_dict().items()
            if name != 'lm_head.weight'}


def quantized(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the weights with every linear layer of the blocks rounded to int4."""
    return {name.removesuffix('.weight') if is_linear(name) else name:
            quantize_rtn(weight, GROUP_SIZE) if is_linear(name) else weight
            for name, weight in weights.items()}


def is_linear(name: str) -> bool:
    """Return whether a weight belongs to a linear layer of a block."""
    return name.endswith('_proj.weight')


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, config: dict[str, Any],
          out: Path) -> tuple[Path, Path]:
    """Write both checkpoints and return their folders."""
    out.mkdir(parents=True, exist_ok=True)
    generation = out / 'generation_config.json'
    generation.write_text(json.dumps({
        'do_sample': False, 'eos_token_id': config['eos_token_id'],
        'pad_token_id': config['pad_token_id']}, indent=2) + '\n', encoding='utf-8')
    extra = (generation, *save_tokenizer(tokenizer, out, MAX_LENGTH))
    weights = weights_of(model)
    save_checkpoint(out / 'fp16', config, weights, extra)
    save_checkpoint(out / 'int4', {**config, 'quantization_config': awq_config(GROUP_SIZE, ())},
                    quantized(weights), extra)
    for file in extra:
        file.unlink()
    return out / 'fp16', out / 'int4'


def report(folder: Path, seed: int, count: int) -> None:
    """Print the exact match of a checkpoint on held-out combinations."""
    result = score(Engine.load(folder), held_out_dialogues(HELD_OUT_SEED + seed, count))
    print(f'{folder.name}: exact match {result.exact_match:.4f} on {count} held-out dialogues',
          result.table(), sep='\n', flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='python -m tinychat_ros.demo_model.train',
                                     description='Train the demo model from nothing.')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR',
                        help='folder for the checkpoints, fp16/ and int4/')
    parser.add_argument('--seed', type=int, default=1, help='of corpus, weights and order')
    parser.add_argument('--dialogues', type=int, default=60_000, help='to train on')
    parser.add_argument('--test-dialogues', type=int, default=1000, help='to test on')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='of torch')
    parser.add_argument('--float32', action='store_true',
                        help='train in float32, for a CPU without bfloat16 instructions')
    return parser.parse_args()


def main() -> None:
    """Run the whole training."""
    options, start = arguments(), time.monotonic()
    torch.set_num_threads(options.threads)
    dialogues = training_dialogues(options.seed, options.dialogues)
    tokenizer = train_tokenizer(dialogues[:30_000], VOCAB_SIZE)
    examples = examples_of(tokenizer, [rendered(dialogue) for dialogue in dialogues])
    config = config_of(tokenizer)
    model = new_model(config, options.seed)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f'{len(examples)} dialogues, {sum(len(example.ids) for example in examples)} tokens, '
          f'{parameters} parameters', flush=True)
    recipe = Recipe(bfloat16=not options.float32)
    train(model, batches(examples, recipe.tokens_per_batch, options.seed), recipe, print)
    folders = write(model, tokenizer, config, options.out)
    print(f'trained in {time.monotonic() - start:.0f} s')
    for folder in folders:
        report(folder, options.seed, options.test_dialogues)


if __name__ == '__main__':
    main()
