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
"""The table of perplexities: its rows, what they are compared to, and the JSON document."""

import json
from statistics import median

from benchmarks import quality
import pytest
from tiny_models import one_thread, write_chat_model  # noqa: F401

_STORIES = [f'Once there were {n} birds. They {verb} all day.'
            for n in range(2, 8) for verb in ('sang', 'flew')]


@pytest.fixture
def command(tmp_path):
    """Return the arguments for a small random model with 9 stories to calibrate it."""
    model = write_chat_model(tmp_path / 'tiny', intermediate_size=64)
    text = tmp_path / 'stories.txt'
    text.write_text('\n***\n'.join(_STORIES))
    return [f'{model}:32', '--text', str(text), '--separator', '***', '--holdout', '3',
            '--samples', '6']


def test_the_share_of_the_gap_is_taken_from_rtn_to_fp16():
    assert quality.won_back(5.5, rtn=6.0, fp16=4.0) == 25
    assert quality.won_back(6.0, rtn=6.0, fp16=4.0) == 0
    assert quality.won_back(4.0, rtn=6.0, fp16=4.0) == 100
    assert quality.won_back(6.5, rtn=6.0, fp16=4.0) == -25


def test_the_last_line_is_a_document_with_a_row_of_each_method(command, tmp_path, capsys):
    path = tmp_path / 'quality.json'
    seeds = ['--seeds', '0', '1', '2']
    names = ['--only', 'rtn', 'awq', 'smoothquant']
    assert quality.main([*command, *seeds, *names, '--json', str(path)]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert json.loads(path.read_text()) == document and document['seeds'] == [0, 1, 2]
    fp16, rtn4, awq4, *variants, rtn3, awq3, w8a8 = rows = document['rows']
    assert [(row['method'], row['bits'], row['activation_bits'], row['head_bits'])
            for row in rows] == [
        ('fp16', 16, 16, 16), ('rtn', 4, 16, 16), ('awq', 4, 16, 16), ('awq', 4, 8, 16),
        ('awq', 4, 16, 8), ('awq', 4, 16, 4), ('awq', 4, 8, 4), ('rtn', 3, 16, 16),
        ('awq', 3, 16, 16), ('smoothquant', 8, 8, 16)]
    assert [len(row['perplexities']) for row in rows] == [1, 1, 3, 3, 3, 3, 3, 1, 3, 3]
    assert len({row['perplexity'] for row in (awq4, *variants)}) == 5
    assert all(row['perplexity'] == median(row['perplexities']) for row in rows)
    base = fp16['perplexity']
    for rtn, awq in ((rtn4, awq4), (rtn3, awq3)):
        gap = rtn['perplexity'] - base
        assert rtn['won_back'] == 0
        assert awq['won_back'] == pytest.approx(100 * (1 - (awq['perplexity'] - base) / gap))
    assert w8a8['difference'] == pytest.approx(100 * (w8a8['perplexity'] / base - 1))
    for variant in variants:
        assert variant['difference'] == pytest.approx(median(
            100 * (a / b - 1) for a, b in zip(variant['perplexities'], awq4['perplexities'])))
    assert len(table) == 1 + len(rows) and table[3].split()[:4] == ['awq', 'W4', 'A16', 'H16']


def test_a_holdout_that_leaves_nothing_to_calibrate_with_is_refused(command, capsys):
    assert quality.main([*command, '--holdout', '12']) == 1
    assert 'holdout: expected 1 to 11' in capsys.readouterr().err
