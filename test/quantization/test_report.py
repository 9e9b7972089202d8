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
"""The report: a page that needs nothing else, and plots that can be opened."""

from base64 import b64decode
from html.parser import HTMLParser
from math import inf, nan
import re
import sys

import pytest

from tinychat_ros.errors import ConfigError
from tinychat_ros.quantization.report import LayerResult, require_matplotlib, write_report

FACTS = {'method': 'awq', 'seconds': '12.5'}
KINDS = ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj',
         'mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj')
PLOTS = ('losses', 'alphas', 'sizes')
VOID = {'meta', 'img'}


class _Page(HTMLParser):
    """Tags with their attributes, and the rows of all tables as (text, class) of each cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        elif tag in ('td', 'th'):
            self.rows[-1].append(('', dict(attrs).get('class')))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ('td', 'th'):
            text, style = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, style)

    def row(self, name):
        """Return the texts of the only row that starts with a name."""
        [row] = [row for row in self.rows if row[0][0] == name]
        return [text for text, _ in row]


def _layer(name='model.layers.0.mlp.down_proj', loss_rtn=4e-3, loss=1e-3, alpha=0.5, **fields):
    return LayerResult(**{'name': name, 'n': 64, 'k': 96, 'bits': 4, 'group_size': 32,
                          'loss_rtn': loss_rtn, 'loss': loss, 'alpha': alpha,
                          'bytes_before': 12_288, 'bytes_after': 3_552, **fields})


def _model(num_blocks):
    return [_layer(f'model.layers.{block}.{kind}', loss_rtn=(2 + place) * 1e-4, loss=1e-4)
            for block in range(num_blocks) for place, kind in enumerate(KINDS)]


def _report(folder, layers, facts=FACTS, title='report'):
    """Write a report, check what holds for every one, and return its page."""
    write_report(folder, title, facts, layers)
    assert sorted(path.name for path in folder.iterdir()) == [
        'alphas.png', 'index.html', 'losses.png', 'sizes.png']
    page = _Page((folder / 'index.html').read_text(encoding='utf-8'))
    images = [attrs['src'] for tag, attrs in page.tags if tag == 'img']
    for name, image in zip(PLOTS, images, strict=True):
        png = (folder / f'{name}.png').read_bytes()
        assert png.startswith(b'\x89PNG\r\n\x1a\n') and len(png) > 10_000
        assert image.startswith('data:image/png;base64,')
        assert b64decode(image[22:]) == png
    return page


def test_the_page_asks_nothing_of_the_network_or_of_other_files(tmp_path):
    page = _report(tmp_path, _model(1))
    text = (tmp_path / 'index.html').read_text(encoding='utf-8')
    assert not re.search(r'://|@import|url\(', text)
    assert not {tag for tag, _ in page.tags} & {'script', 'link', 'iframe', 'base', 'object'}
    assert not any('href' in attrs for _, attrs in page.tags)


@pytest.mark.parametrize('num_blocks', [1, 32, 100])
def test_every_layer_has_a_row_in_the_order_given(tmp_path, num_blocks):
    layers = _model(num_blocks)
    page = _report(tmp_path / 'a' / 'b', layers)
    names = [row[0][0] for row in page.rows if row[0][0].startswith('model.')]
    assert names == [layer.name for layer in layers]


def test_a_row_shows_what_became_of_the_layer(tmp_path):
    head = _layer('lm_head', None, None, None, bits=16, group_size=None, bytes_after=12_288,
                  note='in fp16')
    page = _report(tmp_path, [_layer('a'), _layer('b', bits=8, group_size=None), head])
    assert page.row('a') == [
        'a', '64 × 96', '4', '32', '0.004', '0.001', '0.25', '0.5', '12.3 kB', '3.55 kB', '']
    assert page.row('b')[2:4] == ['8', 'per channel']
    assert page.row('lm_head') == [
        'lm_head', '64 × 96', '16', *'–––––', '12.3 kB', '12.3 kB', 'in fp16']
    assert page.row('total') == ['total', '36.9 kB', '19.4 kB', '']


def test_the_facts_stand_at_the_top(tmp_path):
    page = _report(tmp_path, [_layer()], title='AWQ of demo')
    assert [[text for text, _ in row] for row in page.rows[:2]] == [
        ['method', 'awq'], ['seconds', '12.5']]
    assert '<h1>AWQ of demo</h1>' in (tmp_path / 'index.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('loss_rtn, loss, ratio, worse', [
    (None, None, '–', False), (0.0, 0.0, '–', False), (0.0, 1e-3, '–', False),
    (2e-3, 0.0, '0', False), (2e-3, None, '–', False), (None, 2e-3, '–', False),
    (1e-3, 1e-3, '1', False), (1e-3, 2e-3, '2', True), (1e-3, nan, 'nan', True),
    (1e-3, inf, 'inf', True), (nan, nan, 'nan', True)])
def test_any_loss_is_shown_and_one_above_plain_rounding_stands_out(
        tmp_path, loss_rtn, loss, ratio, worse):
    page = _report(tmp_path, [_layer('x', loss_rtn, loss)])
    assert page.row('x')[6] == ratio
    assert any('worse' in (style or '') for row in page.rows for _, style in row) == worse


def test_a_model_without_losses_and_alphas_is_reported(tmp_path):
    page = _report(tmp_path, [_layer(f'{block}.q', None, None, None) for block in range(3)])
    assert page.row('2.q')[4:8] == ['–'] * 4


@pytest.mark.parametrize('text', [
    '<script>alert(1)</script>', '"\'><img src=x onerror=y>', '{{ 7 * 7 }}', '$x^$', '_$_{$', ''])
def test_names_facts_and_notes_are_text_and_nothing_else(tmp_path, text):
    plain = _report(tmp_path / 'plain', [_layer()])
    page = _report(tmp_path / 'odd', [_layer(f'm.{text}', note=text)],
                   {'method': text, f'key {text}': ''}, text)
    assert page.row(f'm.{text}')[-1] == text
    assert page.row('method') == ['method', text] and page.row(f'key {text}')
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]


def test_a_path_that_is_not_utf8_does_not_lose_the_report(tmp_path):
    assert _report(tmp_path, [_layer()], {'calibration': 'caf\udce9.txt'}).row('calibration') == [
        'calibration', 'caf?.txt']


def test_a_second_report_replaces_the_first(tmp_path):
    _report(tmp_path, _model(2))
    assert not any('layers.1.' in row[0][0] for row in _report(tmp_path, _model(1)).rows)


def test_absent_matplotlib_is_named_before_anything_is_written(tmp_path, monkeypatch):
    require_matplotlib()
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ConfigError, match='pip install matplotlib'):
        require_matplotlib()
    with pytest.raises(ConfigError, match='expected matplotlib'):
        write_report(tmp_path / 'report', 'title', FACTS, [_layer()])
    assert not (tmp_path / 'report').exists()
