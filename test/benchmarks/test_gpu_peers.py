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
"""The table of peers on a GPU: its arithmetic, their turns, and what it needs."""

from benchmarks import gpu_peers
from benchmarks.comparison import Matrix, OURS
from benchmarks.gpu_peers import FP16, INT4PACK
import pytest
import torch

_TIMES = {
    Matrix('qkv', 48, 16, 10): {OURS: [1.0, 2.0, 3.0], INT4PACK: [2.0, 2.0, 2.0],
                                FP16: [8.0, 4.0, 6.0]},
    Matrix('lm_head', 99, 16, 1): {OURS: [5.0, 5.0, 5.0], INT4PACK: [10.0, 5.0, 5.0],
                                   FP16: [5.0, 5.0, 4.0]},
}


def test_a_row_has_medians_and_the_ratios_of_single_rounds():
    qkv, head, _ = gpu_peers.rows(_TIMES)
    assert (qkv.name, qkv.n, qkv.k) == ('qkv', 48, 16)
    assert qkv.milliseconds == {OURS: 2, INT4PACK: 2, FP16: 6}
    assert qkv.ratios == {INT4PACK: (0.5, 1, 1.5), FP16: (0.125, 0.5, 0.5)}
    assert head.ratios[FP16] == (1, 1, 1.25)


def test_the_total_counts_each_matrix_as_often_as_a_token_passes_it():
    total = gpu_peers.rows(_TIMES)[-1]
    assert total.name == 'total'
    assert total.milliseconds == {OURS: 25, INT4PACK: 25, FP16: 64}
    assert total.ratios[INT4PACK] == (15 / 30, 25 / 25, 35 / 25)


def test_the_table_has_a_line_of_each_row():
    head, qkv, lm_head, total = gpu_peers.table(gpu_peers.rows(_TIMES)).splitlines()
    assert head.split()[:4] == ['matrix', 'n', 'k', 'ours']
    assert qkv.split() == ['qkv', '48', '16', '2.00000', '2.00000', '6.00000',
                           '1.000', '(0.500-1.500)', '0.500', '(0.125-0.500)']
    assert total.split()[:2] == ['total', '25.00000']
    assert len({len(line) for line in (head, qkv, lm_head, total)}) == 1


def test_contenders_take_turns_and_go_through_all_copies(monkeypatch):
    calls = []

    def build_as(name):
        def build(n, k, device):
            number = len(built[name])
            built[name].append((n, k))
            return lambda: calls.append((name, number))

        return build

    built = {OURS: [], FP16: []}
    monkeypatch.setattr(gpu_peers, 'CONTENDERS', {name: (2, build_as(name)) for name in built})
    monkeypatch.setattr(gpu_peers, '_copies', lambda *arguments: 3)
    found = gpu_peers.measure(Matrix('o', 16, 32, 1), [OURS, FP16], torch.device('cpu'), 2)
    assert built == {OURS: [(16, 32)] * 3, FP16: [(16, 32)] * 3}
    assert [len(found[name]) for name in (OURS, FP16)] == [2, 2]
    turns = [name for (name, _), (after, _) in zip(calls, [*calls[1:], ('', 0)]) if name != after]
    assert turns == [OURS, FP16, OURS, FP16]
    assert [number for _, number in calls[:6]] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize('old', [False, True], ids=['uint8', 'int32'])
def test_codes_are_packed_for_either_signature(monkeypatch, old):
    """Before PyTorch 2.5 each code was an int32, the first of a byte in its upper half."""
    taken = []

    def pack(codes, inner_k_tiles):
        if old and codes.dtype != torch.int32:
            raise RuntimeError('expected int32')
        taken.append(codes)

    monkeypatch.setattr(torch.ops.aten, '_convert_weight_to_int4pack', pack)
    gpu_peers.pack_int4(torch.tensor([[0x12, 0x34]], dtype=torch.uint8))
    assert taken[0].tolist() == ([[1, 2, 3, 4]] if old else [[0x12, 0x34]])


def test_a_model_for_llama_bench_needs_llama_bench(capsys):
    with pytest.raises(SystemExit):
        gpu_peers.main(['--gguf', 'model.gguf'])
    assert 'expected both or neither' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert gpu_peers.main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.splitlines() == [
        'tinychat: error: device: expected a GPU for cuda, and torch finds none']
