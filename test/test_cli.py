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
"""The command line, run in this process; what it prints and how it exits."""

import argparse
import io
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import pytest

from tinychat_ros import cli
from tinychat_ros.engine.engine import Engine

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def stories(shared_data):
    return shared_data / 'models' / 'stories260K'


@pytest.fixture
def chat_model(stories, tmp_path):
    """Return a copy of stories260K that continues what the user says."""
    shutil.copytree(stories, tmp_path / 'chat')
    (tmp_path / 'chat').chmod(0o755)
    template = '{% for m in messages %}{{ m.content }}{% endfor %}'
    (tmp_path / 'chat' / 'chat_template.jinja').write_text(template)
    return tmp_path / 'chat'


def run(capsys, *args):
    """Return exit code, stdout and stderr of a command."""
    try:
        code = cli.main([str(arg) for arg in args])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


def test_raw_greedy_text_equals_the_golden_one(capsys, shared_data, stories):
    golden = (shared_data / 'golden' / 'stories260K_greedy200.txt').read_text()
    code, out, _ = run(capsys, 'generate', '--model', stories, '--raw', '--prompt', '',
                       '--temperature', 0, '--max-new-tokens', 200, '--device', 'cpu')
    assert (code, out) == (0, golden + '\n')


def test_json_is_the_last_line_and_has_every_key(capsys, stories):
    code, out, _ = run(capsys, 'generate', '--model', stories, '--raw', '--prompt', 'Once',
                       '--temperature', 0, '--max-new-tokens', 5, '--json')
    answer = json.loads(out.splitlines()[-1])
    assert code == 0
    assert len(answer['token_ids']) == answer['completion_tokens'] == 5
    assert answer['finish_reason'] == 'length' and answer['prompt_tokens'] == 2
    assert 0 < answer['time_to_first_token'] < answer['duration']
    assert answer['tokens_per_second'] > 0 and answer['text']


def test_one_seed_gives_one_text(capsys, stories):
    def text(seed):
        return run(capsys, 'generate', '--model', stories, '--raw', '--prompt', 'Once',
                   '--temperature', 1, '--max-new-tokens', 20, '--seed', seed)[1]
    assert text(1) == text(1) != text(2)


def test_a_stop_string_ends_the_answer(capsys, stories):
    _, out, _ = run(capsys, 'generate', '--model', stories, '--raw', '--prompt', '',
                    '--temperature', 0, '--max-new-tokens', 200, '--stop', ' girl named')
    assert out == 'Once upon a time, there was a little\n'


@pytest.mark.parametrize('args, code, words', [
    (['--model', 'no/such/folder', '--prompt', 'a'], 1, 'no/such/folder: expected a checkpoint'),
    (['--prompt', 'a', '--temperature', '500'], 2, 'temperature: expected a value in [0.0, 100'),
    (['--prompt', ' '], 2, 'text: expected a prompt, got an empty one'),
    (['--prompt', 'a', '--max-new-tokens', '0'], 2, 'max_new_tokens: expected 1 or more, got 0'),
    (['--raw', '--prompt', 'a ' * 600], 1, '512 tokens holds a prompt of at most 511'),
    (['--prompt', 'a\udcff'], 2, 'text: expected valid Unicode'),
    (['--prompt', 'a', '--threads', '100000'], 2, 'num_threads: expected at most 1024'),
    (['--model', 'setup.py', '--prompt', 'a'], 1, 'expected a checkpoint folder, got a file'),
    (['--prompt', 'a', '--max-seq-len', '9999'], 2, 'max_seq_len: expected at most 512'),
    (['--prompt', 'a', '--chat-template', 'no.jinja'], 1, 'no.jinja: expected a text file'),
    (['--prompt', 'a'], 1, 'expected a chat template'),
])
def test_an_error_is_one_line_and_an_exit_code(capsys, stories, args, code, words):
    model = [] if '--model' in args else ['--model', stories]
    got, out, err = run(capsys, 'generate', *model, *args)
    assert (got, out) == (code, '')
    assert err.startswith('tinychat: error: ') and words in err and err.count('\n') == 1


@pytest.mark.parametrize('args', [
    [], ['nonsense'], ['generate'], ['generate', '--prompt', 'a', '--device', 'tpu'],
    ['generate', '--prompt', 'a', '--seed', 'x']])
def test_wrong_usage_exits_with_2(capsys, args):
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, '')
    assert err.startswith('tinychat') and ': error: ' in err and err.count('\n') == 1


def test_verbose_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, '-m', 'tinychat_ros.cli', 'generate', '--model', 'no/such/folder',
         '--prompt', 'a', '--verbose'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'Traceback' in done.stderr and 'no/such/folder' in done.stderr


def test_every_option_has_a_help_text():
    parser = cli.build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == {'chat', 'generate', 'quantize', 'perplexity',
                                     'inspect', 'bench', 'doctor'}
    for command in commands.choices.values():
        assert all(action.help for action in command._actions)
        assert '--json' in command.format_help()


def _perplexity(capsys, model, *args):
    code, out, _ = run(capsys, 'perplexity', model, *args, '--device', 'cpu', '--json')
    assert code == 0
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def text(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text('Once upon a time\n##\n\n##\nthere was a little girl.##One day, the end\n')
    return path


def test_perplexity_of_stories_names_what_was_measured(capsys, shared_data, stories):
    found = _perplexity(
        capsys, f'{stories}-pad192', '--text', shared_data / 'text' / 'tinystories-cal.txt',
        '--separator', '<|endoftext|>', '--skip', -30)
    assert found.pop('perplexity') == pytest.approx(4.4764, abs=5e-4)
    assert found == {'model': f'{stories}-pad192', 'method': 'plain', 'activations': 'fp16',
                     'context': 512, 'texts': 30, 'tokens': 11948}


def test_perplexity_takes_windows_of_the_context_or_texts_between_separators(
        capsys, stories, text):
    whole = _perplexity(capsys, stories, '--text', text)
    windows = _perplexity(capsys, stories, '--text', text, '--context', 10)
    assert whole['texts'] == 1 and windows['context'] == 10
    # The first token of each window is not predicted.
    assert windows['texts'] == -(-(whole['tokens'] + 1) // 10)
    assert windows['tokens'] == whole['tokens'] + 1 - windows['texts']
    separate = _perplexity(capsys, stories, '--text', text, '--separator', '##')
    lines = text.with_suffix('.jsonl')
    lines.write_text('\n'.join(json.dumps({'text': part}) for part in (
        'Once upon a time', 'there was a little girl.', 'One day, the end')))
    assert separate == _perplexity(capsys, stories, '--text', lines)
    assert separate['texts'] == 3


def test_skip_and_limit_split_the_texts(capsys, stories, text):
    def tokens(*args):
        return _perplexity(
            capsys, stories, '--text', text, '--separator', '##', *args)['tokens']
    first, second, third = (tokens('--skip', i, '--limit', 1) for i in range(3))
    assert tokens('--limit', 2) == first + second
    assert tokens('--skip', 1) == tokens('--skip', -2) == second + third
    assert tokens('--skip', -2, '--limit', 1) == second


def test_perplexity_with_int8_activations_is_another_one(capsys, text):
    exact, rounded = (_perplexity(capsys, 'demo', '--text', text, '--activations', kind)
                      for kind in ('fp16', 'int8'))
    assert (rounded['method'], rounded['activations']) == ('awq-gemm', 'int8')
    assert rounded['tokens'] == exact['tokens']
    assert rounded['perplexity'] != exact['perplexity']
    assert rounded['perplexity'] == pytest.approx(exact['perplexity'], rel=0.05)


@pytest.mark.parametrize('args, words', [
    (['--text', 'no.txt'], 'no.txt: expected a file, and there is none'),
    (['--context', 513], 'context: expected 2 to 512, what the model was trained for, got 513'),
    (['--context', 1], 'context: expected 2 to 512'),
    (['--context', -1], 'context: expected 2 to 512'),
    (['--limit', -1], 'limit: expected 0 or more, got -1'),
    (['--skip', 1], 'text: expected one of 2 tokens or more, got 0 texts'),
    (['--threads', -1], 'num_threads: expected 0 or more, got -1'),
    (['--activations', 'int8'], 'activations: expected fp16 for'),
])
def test_what_perplexity_cannot_measure_is_one_line(capsys, stories, text, args, words):
    got, out, err = run(capsys, 'perplexity', stories, '--text', text, *args)
    assert (got, out) == (2, '')
    assert err.startswith('tinychat: error: ') and words in err and err.count('\n') == 1


def test_perplexity_refuses_an_empty_text_and_a_missing_model(capsys, stories, tmp_path):
    (tmp_path / 'empty.txt').write_text(' \n')
    code, _, err = run(capsys, 'perplexity', stories, '--text', tmp_path / 'empty.txt')
    assert code == 2 and 'empty.txt: expected text, and there is none in it' in err
    code, _, err = run(capsys, 'perplexity', 'no/folder', '--text', tmp_path / 'empty.txt')
    assert code == 1 and 'no/folder: expected a checkpoint folder' in err


def test_inspect_reads_the_headers(capsys, stories):
    code, out, _ = run(capsys, 'inspect', stories, '--json')
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert (found['architecture'], found['format']) == ('llama', 'plain')
    assert found['parameters'] == 260032
    # Tied embeddings are the LM head, so that every weight is read for a token.
    assert found['weight_bytes_per_token'] == 260032 * 2
    assert found['kv_bytes_per_position'] == 2 * 5 * 4 * 8 * 2
    assert len(found['layers']) == 5 * 7
    gate = next(x for x in found['layers'] if x['name'] == 'model.layers.3.mlp.gate_proj')
    assert (gate['n'], gate['k']) == (172, 64)


def test_doctor_tells_what_is_here(capsys):
    code, out, _ = run(capsys, 'doctor', '--json')
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert found['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert {'torch', 'extension', 'cpu_isa', 'cuda', 'ros_distro', 'problems'} <= set(found)


def test_doctor_says_why_the_compiled_module_is_absent(capsys, monkeypatch):
    from tinychat_ros.kernels import extension
    monkeypatch.setitem(sys.modules, 'tinychat_kernels', None)
    extension._find.cache_clear()
    try:
        _, out, _ = run(capsys, 'doctor', '--json')
    finally:
        extension._find.cache_clear()
    found = json.loads(out.splitlines()[-1])
    assert found['extension'] is None and found['cpu_isa'] == []
    assert any('tinychat_kernels' in problem for problem in found['problems'])


def test_chat_remembers_and_resets(capsys, monkeypatch, chat_model):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('One day\n\nand\n/reset\nOne day\n/exit\nx\n'))
    code, out, _ = run(capsys, 'chat', '--model', chat_model, '--temperature', 0,
                       '--max-new-tokens', 8, '--json')
    turns = json.loads(out.splitlines()[-1])['turns']
    assert code == 0
    assert [turn['prompt'] for turn in turns] == ['One day', 'and', 'One day']
    assert turns[1]['cached_tokens'] > 0
    assert turns[2]['text'] == turns[0]['text']


def test_a_line_that_cannot_be_served_does_not_end_the_chat(capsys, monkeypatch, chat_model):
    lines = f'One day\n{"a " * 600}\nbytes \udcff\nand\n'
    monkeypatch.setattr(sys, 'stdin', io.StringIO(lines))
    code, out, err = run(capsys, 'chat', '--model', chat_model, '--temperature', 0,
                         '--max-new-tokens', 8, '--json')
    turns = json.loads(out.splitlines()[-1])['turns']
    assert [turn['prompt'] for turn in turns] == ['One day', 'and']
    assert turns[1]['cached_tokens'] > 0
    assert code == 1 and err.count('tinychat: error: ') == err.count('\n') == 2


@pytest.mark.parametrize('option, code', [('--max-new-tokens=0', 2), ('--temperature=nan', 2),
                                          ('--seed=1', 0)])
def test_chat_says_of_a_wrong_option_before_it_asks(capsys, monkeypatch, chat_model, option, code):
    monkeypatch.setattr(sys, 'stdin', io.StringIO(''))
    assert run(capsys, 'chat', '--model', chat_model, option)[0] == code


def test_a_closed_stdin_is_the_end_of_the_chat(capsys, monkeypatch, chat_model):
    monkeypatch.setattr(sys, 'stdin', None)
    assert run(capsys, 'chat', '--model', chat_model) == (0, '', '')


def test_ctrl_c_stops_the_answer_and_not_the_chat(capsys, monkeypatch, chat_model):
    generate = Engine.generate

    def interrupted(self, request):
        for count, chunk in enumerate(generate(self, request)):
            yield chunk
            if count == 3 and request.text == 'One day':
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Engine, 'generate', interrupted)
    monkeypatch.setattr(sys, 'stdin', io.StringIO('One day\nTwo dogs\n'))
    code, out, _ = run(capsys, 'chat', '--model', chat_model, '--temperature', 0,
                       '--max-new-tokens', 20, '--json')
    turns = json.loads(out.splitlines()[-1])['turns']
    assert code == 0
    assert [turn['finish_reason'] for turn in turns] == ['canceled', 'length']
    assert [turn['completion_tokens'] for turn in turns] == [4, 20]
