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
"""The tokenizer of the demo model: byte-level BPE trained on the corpus, and its chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tinychat_ros.checkpoint.writer import save_json
from tinychat_ros.demo_model.corpus import Dialogue
from tokenizers import decoders, models, pre_tokenizers, Tokenizer, trainers

END_OF_TEXT, MESSAGE_START, MESSAGE_END = '<|endoftext|>', '<|im_start|>', '<|im_end|>'
SPECIAL_TOKENS = [END_OF_TEXT, MESSAGE_START, MESSAGE_END]
ASSISTANT = f'{MESSAGE_START}assistant\n'
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] | trim) + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def rendered(dialogue: Dialogue) -> str:
    """Return a dialogue as ``CHAT_TEMPLATE`` renders it."""
    return ''.join(f'{MESSAGE_START}{message.role}\n{message.content}{MESSAGE_END}\n'
                   for message in dialogue.messages)


def train_tokenizer(dialogues: Iterable[Dialogue], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE: every byte is in the vocabulary, so that no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(map(rendered, dialogues), trainer)
    return tokenizer


def assistant_mask(ids: list[int], start: list[int], end: int) -> list[bool]:
    """
    Mark the tokens that the robot says, the end of its message included.

    :param ids: the tokens of a rendered dialogue.
    :param start: the tokens that open a message of the robot.
    :param end: the token that closes a message.
    """
    mask, speaking = [], False
    for position, token in enumerate(ids):
        mask.append(speaking)
        if token == end:
            speaking = False
        elif ids[position + 1 - len(start):position + 1] == start:
            speaking = True
    return mask


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': max_length,
        'bos_token': None, 'eos_token': MESSAGE_END, 'pad_token': END_OF_TEXT,
        'clean_up_tokenization_spaces': False, 'chat_template': CHAT_TEMPLATE}
    tokenizer.save(str(folder / 'tokenizer.json'))
    save_json(folder / 'tokenizer_config.json', config)
