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
"""The calibration sequences on disk, on their way from block to block."""

import pytest
import torch

from tinychat_ros.errors import CheckpointError
from tinychat_ros.quantization.activations import Activations
from tinychat_ros.quantization.streams import ORIGINAL, QUANTIZED, Streams, STREAMS

_CPU = torch.device('cpu')
_LENGTHS = (3, 1, 5)
_WIDTH = 4


def _sequences(offset=0.0):
    return [torch.randn(length, _WIDTH, generator=torch.Generator().manual_seed(length)) + offset
            for length in _LENGTHS]


@pytest.fixture
def streams(tmp_path):
    """Return an original and a quantized stream with what enters the first block."""
    found = Streams(tmp_path, STREAMS['corrected'], _LENGTHS, _WIDTH, _CPU)
    found.begin('first', lambda: iter(_sequences()))
    return found


def _equal(found, wanted):
    found = list(found)
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


def test_activations_are_read_as_they_were_written(tmp_path):
    file = Activations(tmp_path / 'x.bin', _LENGTHS, _WIDTH)
    assert not file.exists()
    file.write(iter(_sequences()))
    assert file.exists()
    assert _equal(file.read(_CPU), _sequences())
    assert _equal(file.read(_CPU, 2), _sequences()[:2])
    assert _equal(file.read(_CPU, 0), []) and _equal(file.read(_CPU, 9), _sequences())
    file.remove()
    file.remove()
    assert not list(tmp_path.iterdir())


def test_a_transposed_sequence_is_written_as_it_reads(tmp_path):
    file = Activations(tmp_path / 'x.bin', [2], 3)
    wide = torch.randn(3, 2)
    file.write([wide.t()])
    assert _equal(file.read(_CPU), [wide.t()])


def test_a_write_that_fails_leaves_the_old_activations_and_nothing_else(tmp_path):
    file = Activations(tmp_path / 'x.bin', _LENGTHS, _WIDTH)
    file.write(_sequences())

    def breaking():
        yield _sequences()[0]
        raise OSError('No space left on device')

    with pytest.raises(OSError, match='No space left'):
        file.write(breaking())
    assert [path.name for path in tmp_path.iterdir()] == ['x.bin']
    assert _equal(file.read(_CPU), _sequences())


def test_activations_that_are_missing_short_or_of_other_sequences_are_refused(tmp_path):
    file = Activations(tmp_path / 'x.bin', _LENGTHS, _WIDTH)
    with pytest.raises(CheckpointError, match='x.bin: expected 144 bytes of activations, got no'):
        next(file.read(_CPU))
    file.write(_sequences())
    (tmp_path / 'x.bin').write_bytes((tmp_path / 'x.bin').read_bytes()[:-1])
    with pytest.raises(CheckpointError, match='expected 144 bytes of activations, got 143'):
        next(file.read(_CPU, 1))


def test_both_streams_start_with_the_embedded_text(streams):
    pairs = list(streams.pairs('first'))
    assert _equal([x for x, _ in pairs], _sequences())
    assert _equal([original for _, original in pairs], _sequences())
    assert len(list(streams.pairs('first', 2))) == 2


def test_each_stream_goes_its_own_way(streams):
    streams.advance('first', 'second', lambda name, x: x + (1 if name == ORIGINAL else 2))
    pairs = list(streams.pairs('second'))
    assert _equal([x for x, _ in pairs], _sequences(2.0))
    assert _equal([original for _, original in pairs], _sequences(1.0))
    assert _equal([x for x, _ in streams.pairs('first')], _sequences())


@pytest.mark.parametrize('inputs, name', [('original', ORIGINAL), ('quantized', QUANTIZED)])
def test_a_single_stream_stands_for_both(tmp_path, inputs, name):
    single = Streams(tmp_path, STREAMS[inputs], _LENGTHS, _WIDTH, _CPU)
    single.begin('first', lambda: iter(_sequences()))
    seen = []
    single.advance('first', 'second', lambda stream, x: seen.append(stream) or x + 1)
    assert seen == [name] * 3
    assert all(torch.equal(x, original) for x, original in single.pairs('second'))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_an_earlier_run_embedded_is_not_written_again(streams):
    streams.begin('first', lambda: pytest.fail('embedded again'))


def test_a_forgotten_place_leaves_no_file(streams, tmp_path):
    streams.advance('first', 'second', lambda name, x: x)
    streams.forget('first')
    streams.forget('never')
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'original-second.bin', 'quantized-second.bin']
    with pytest.raises(CheckpointError, match='quantized-first.bin: expected 144 bytes'):
        list(streams.pairs('first'))


def test_without_streams_nothing_is_kept(tmp_path):
    none = Streams(tmp_path, (), (), _WIDTH, _CPU)
    none.begin('first', lambda: pytest.fail('nobody reads it'))
    none.advance('first', 'second', lambda name, x: pytest.fail('nobody reads it'))
    none.forget('first')
    assert none.empty and not list(none.pairs('first')) and not list(tmp_path.iterdir())
