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
Train the demo model from nothing, quantize it, and write it in fp16 and in int4.

``python -m tinychat_ros.demo_model.train --out DIR`` draws the corpus, trains tokenizer and model,
writes ``DIR/fp16`` and ``DIR/int4`` and prints the exact match of both on held-out combinations.
This quantizes the fp16 weights of the repository again, for the package::

    python -m tinychat_ros.demo_model.train --from-fp16 test/data/demo_model_fp16 --out DIR &&
        cp DIR/int4/* tinychat_ros/demo_model/
"""

from __future__ import annotations

import argparse
from pathlib import Path
import time
from typing import Any

from tinychat_ros.checkpoint.writer import save_checkpoint, save_json
from tinychat_ros.demo_model.corpus import held_out_dialogues, training_dialogues
from tinychat_ros.demo_model.evaluate import score
from tinychat_ros.demo_model.tokenizer import (
    ASSISTANT, assistant_mask, END_OF_TEXT, MESSAGE_END, rendered, save_tokenizer, train_tokenizer)
from tinychat_ros.demo_model.training import batches, Example, new_model, Recipe, train
from tinychat_ros.engine.engine import Engine
from tinychat_ros.kernels.rtn import WeightSpec
from tinychat_ros.quantization.job import Job, WeightOnly
from tinychat_ros.quantization.method import METHODS
from tinychat_ros.quantization.quantize import quantize_checkpoint
from tokenizers import Tokenizer
import torch
from transformers import LlamaForCausalLM

VOCAB_SIZE = 1024
MAX_LENGTH = 1024
CALIBRATION_DIALOGUES = 128
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


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, config: dict[str, Any],
          folder: Path) -> None:
    """Write the fp16 checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder, MAX_LENGTH)
    save_json(folder / 'generation_config.json', {
        'do_sample': False, 'eos_token_id': config['eos_token_id'],
        'pad_token_id': config['pad_token_id']})
    save_checkpoint(folder, config, weights_of(model))


def quantize(fp16: Path, int4: Path, seed: int) -> None:
    """Quantize a checkpoint, calibrated on dialogues that its training starts with."""
    tokenizer = Tokenizer.from_file(str(fp16 / 'tokenizer.json'))
    texts = [rendered(dialogue) for dialogue in training_dialogues(seed, CALIBRATION_DIALOGUES)]
    samples = [torch.tensor(example.ids) for example in examples_of(tokenizer, texts)]
    scheme = WeightOnly(METHODS['awq'], WeightSpec(bits=4, group_size=128))
    quantize_checkpoint(Job(fp16, int4, scheme, samples))


def report(folder: Path, seed: int, count: int) -> None:
    """Print the exact match of a checkpoint on held-out combinations."""
    result = score(Engine.load(folder), held_out_dialogues(HELD_OUT_SEED + seed, count))
    print(f'{folder.name}: exact match {result.exact_match:.4f} on {count} held-out dialogues',
          result.table(), sep='\n', flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='python -m tinychat_ros.demo_model.train',
                                     description='Train and quantize the demo model.')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR',
                        help='folder for the checkpoints, fp16/ and int4/')
    parser.add_argument('--from-fp16', type=Path, metavar='DIR',
                        help='quantize this checkpoint instead of training one')
    parser.add_argument('--seed', type=int, default=1, help='of corpus, weights and order')
    parser.add_argument('--dialogues', type=int, default=60_000, help='to train on')
    parser.add_argument('--test-dialogues', type=int, default=1000, help='to test on')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='of torch')
    parser.add_argument('--float32', action='store_true',
                        help='train in float32, for a CPU without bfloat16 instructions')
    return parser.parse_args()


def train_from_nothing(options: argparse.Namespace, folder: Path) -> None:
    """Draw the corpus, train tokenizer and model, and write the fp16 checkpoint."""
    start = time.monotonic()
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
    write(model, tokenizer, config, folder)
    print(f'trained in {time.monotonic() - start:.0f} s')


def main() -> None:
    """Train unless there is a checkpoint, quantize, and report on both."""
    options = arguments()
    torch.set_num_threads(options.threads)
    fp16, int4 = options.from_fp16 or options.out / 'fp16', options.out / 'int4'
    if not options.from_fp16:
        train_from_nothing(options, fp16)
    quantize(fp16, int4, options.seed)
    for folder in (fp16, int4):
        report(folder, options.seed, options.test_dialogues)


if __name__ == '__main__':
    main()
