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
"""Products side by side: their arithmetic, turns and tables."""

from contextlib import contextmanager

from benchmarks import int4_contenders, int4_products
from benchmarks.comparison import Matrix, OURS
from benchmarks.conditions import Conditions
from benchmarks.int4_contenders import CONTENDERS, Product, why_absent, Work
import pytest
from tiny_models import one_thread  # noqa: F401

from tinychat_ros.kernels import extension

_MATRIX = Matrix('o', 1000, 2000, 5)
_ROUNDS = [Conditions(30, 0.5), Conditions(20, 0.25), Conditions(10, 0)]
_FOUND = {OURS: [2e3, 4e3, 6e3], 'peer': [4e3, 2e3, 3e3]}
_BYTES = {OURS: 1_000_000, 'peer': 2_000_000}


def row(tokens, copies, threads):
    return int4_products.row(_MATRIX, Work(1000, 2000, tokens, copies, threads), _FOUND, _BYTES,
                             _ROUNDS)


def test_one_token_has_the_bytes_of_the_weights_in_a_second():
    found = row(1, 7, 2)
    assert found.speeds == {OURS: 4, 'peer': 6}
    assert found.ratios == {'peer': (0.5, 2, 2)}


def test_many_tokens_have_the_multiplications_of_a_core_in_a_second():
    found = row(128, 1, 2)
    assert found.speeds[OURS] == pytest.approx(4e3 * 1000 * 2000 * 128 / 2 / 1e9)
    assert found.ratios == {'peer': (0.5, 2, 2)}


def test_the_table_says_under_what_conditions_a_matrix_was_measured():
    lines = int4_products.table([row(1, 7, 1), row(128, 1, 1)])
    one, many = lines.index('') + 1, lines.index('', 1) + 1
    assert lines[one].split()[:5] == ['tokens:', '1', 'n', 'k', 'by']
    assert lines[one + 1].split() == ['o', '1000', '2000', 'ours', '4.0', '20.0', '0.50']
    assert lines[one + 2].split() == [
        'o', '1000', '2000', 'peer', '6.0', '2.000', '(0.500-2.000)', '20.0', '0.50']
    assert lines[many].split()[:2] == ['tokens:', '128'] and len(lines) == many + 3


def test_the_last_cache_is_the_largest(tmp_path):
    for index, size in enumerate(('48K', '2048K', '32768K')):
        (tmp_path / f'index{index}').mkdir()
        (tmp_path / f'index{index}/size').write_text(f'{size}\n')
    assert int4_products.last_cache_bytes(tmp_path) == 2**25
    assert int4_products.last_cache_bytes(tmp_path / 'absent') > 0


def test_contenders_take_turns_and_one_token_goes_through_copies(monkeypatch):
    calls, works = [], []

    @contextmanager
    def watch(rounds):
        calls.append('round')
        rounds.append(_ROUNDS[0])
        yield

    def build_as(name):
        def build(work):
            works.append(work)
            return Product(lambda: calls.append((name, work.tokens)), 100)

        return build

    monkeypatch.setattr(int4_products, 'watched', watch)
    monkeypatch.setattr(int4_products, 'CONTENDERS', {n: build_as(n) for n in (OURS, 'peer')})
    monkeypatch.setattr(int4_products, 'last_cache_bytes', lambda folder: 1_000_000)
    one, many = int4_products.measure(_MATRIX, [OURS, 'peer'], 2, 2)
    assert works == [Work(1000, 2000, 1, 4, 2)] * 2 + [Work(1000, 2000, 128, 1, 2)] * 2
    turns = [call for call, before in zip(calls, ['', *calls]) if call != before]
    assert turns == 2 * ['round', (OURS, 1), ('peer', 1), (OURS, 128), ('peer', 128)]
    assert (one.tokens, many.tokens, one.rounds) == (1, 128, [_ROUNDS[0]] * 2)


@pytest.mark.skipif(extension.load() is None, reason='the extension is not built')
def test_ours_goes_through_all_copies():
    product = CONTENDERS[OURS](Work(32, 256, 2, 3, 1))
    product.run()
    # Half a byte for each weight; an fp16 scale and a zero for each 128 of them.
    assert product.weight_bytes == 32 * 256 // 2 + 32 * 2 * 3


@pytest.mark.parametrize('name', CONTENDERS)
def test_a_contender_runs_or_says_what_it_lacks(name):
    reason = why_absent(name)
    assert reason == '' or ': ' in reason


def test_a_missing_package_is_named(monkeypatch):
    def build(work):
        raise ModuleNotFoundError("No module named 'onnxruntime'")

    monkeypatch.setattr(int4_contenders, 'CONTENDERS', {'onnxruntime b32': build})
    assert why_absent('onnxruntime b32') == "ModuleNotFoundError: No module named 'onnxruntime'"
