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
"""The committed demo model answers combinations that it never saw in training."""

import json

import pytest
from tinychat_ros.demo_model.corpus import held_out_dialogues
from tinychat_ros.demo_model.evaluate import answer, score
from tinychat_ros.demo_model.train import HELD_OUT_SEED
from tinychat_ros.engine.config import DEMO_MODEL
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Message

DIALOGUES = 400
INT4_LIMIT = 5_000_000


@pytest.fixture(scope='module')
def checkpoints(repository):
    """Return the folders of both checkpoints."""
    return {'fp16': repository / 'test' / 'data' / 'demo_model_fp16', 'int4': DEMO_MODEL}


@pytest.mark.parametrize('precision, expected', [('fp16', 0.95), ('int4', 0.93)])
def test_held_out_combinations_are_answered_exactly(checkpoints, capsys, precision, expected):
    result = score(Engine.load(checkpoints[precision]),
                   held_out_dialogues(HELD_OUT_SEED, DIALOGUES))
    with capsys.disabled():
        print(f'\ndemo model in {precision}: exact match {result.exact_match:.4f} '
              f'on {DIALOGUES} held-out dialogues')
    assert result.asked.total() == DIALOGUES
    assert result.exact_match >= expected, result.table()


def test_a_talk_of_ten_turns_keeps_the_thread(checkpoints):
    engine, history, replies = Engine.load(checkpoints['int4']), (), []
    for request in ('Hello Tiny!', 'Bring me the blue book from the library.', 'thank you',
                    'Tell me a joke.', 'What did I ask for?', 'Take it to the office.',
                    'Where are you?', 'How is your battery?', 'Go to the garden.',
                    'Where are you now?'):
        history += (Message('user', request),)
        replies.append(answer(engine, history))
        history += (Message('assistant', replies[-1]),)
    assert replies[1] == 'I will get the blue book from the library.'
    assert replies[4] == 'It is about the blue book.'
    assert replies[5] == 'I will take the blue book to the office.'
    assert replies[6] == 'I am in the office.'
    assert replies[9] == 'I am in the garden.'


def test_the_package_stays_small_and_says_what_it_is():
    assert sum(file.stat().st_size for file in DEMO_MODEL.iterdir()) < INT4_LIMIT
    config = json.loads((DEMO_MODEL / 'config.json').read_text())
    assert config['quantization_config'] == {
        'quant_method': 'awq', 'bits': 4, 'group_size': 128, 'zero_point': True,
        'version': 'gemm', 'modules_to_not_convert': None}


def test_the_int4_weights_are_the_fp16_weights_rounded(checkpoints):
    """Nothing was trained, patched or exchanged between the two."""
    from tinychat_ros.checkpoint.formats import read_awq_gemm
    from tinychat_ros.checkpoint.reader import CheckpointReader
    from tinychat_ros.quantization.rtn import quantize_rtn
    name = 'model.layers.2.mlp.down_proj'
    with CheckpointReader(checkpoints['fp16']) as fp16, \
            CheckpointReader(checkpoints['int4']) as int4:
        n, k = fp16.shape(f'{name}.weight')
        rounded = quantize_rtn(fp16.floats(f'{name}.weight', [n, k]), 128)
        stored = read_awq_gemm(int4, name, n, k)
    assert rounded.qweight.equal(stored.qweight) and rounded.scales.equal(stored.scales)
