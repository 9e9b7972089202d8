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
"""Figures follow from times: rates are bytes by time, fractions are of what was measured."""

from given_times import MEASURED
import pytest

from tinychat_ros.bench.figures import figures


def test_a_kernel_s_rate_is_its_bytes_by_its_time():
    qkv, *_ = figures(MEASURED)['kernels']
    expected = {'name': 'qkv', 'm': 1, 'n': 300, 'k': 100, 'bytes': 20_000, 'calls': 10,
                'microseconds': 1, 'p10': 0.5, 'p90': 2, 'gbs': 20,
                'read_bandwidth_gbs': 80, 'fraction_of_bandwidth': 0.25}
    assert qkv == pytest.approx(expected)


def test_a_product_of_many_tokens_is_held_against_the_matrix_product():
    [qkv] = figures(MEASURED)['products']
    rate = 32 * 300 * 100 / 1e-5
    assert qkv == pytest.approx({
        'name': 'qkv', 'm': 32, 'n': 300, 'k': 100, 'calls': 10, 'microseconds': 10, 'p10': 5,
        'p90': 20, 'gmacs': rate / 1e9, 'gmacs_per_thread': rate / 2e9,
        'fraction_of_matrix_rate': 2 * rate / 1e12})


def test_decode_is_held_against_the_time_to_read_its_bytes():
    first, second = figures(MEASURED)['decode']
    assert first == pytest.approx({
        'context': 4, 'tokens_per_second': 1e4, 'milliseconds': 0.1, 'p10': 0.05, 'p90': 0.2,
        'bytes_per_token': 304_000, 'read_bandwidth_gbs': 90,
        'fraction_of_limit': 304_000 / 90e9 / 1e-4,
        'kernels_milliseconds': 0.01 + 0.02 + 0.002, 'step_milliseconds': 0.05})
    assert second['bytes_per_token'] == 364_000
    assert second['kernels_milliseconds'] == pytest.approx(0.01 + 0.03 + 0.002)
    assert second['step_milliseconds'] is None


def test_prefill_is_held_against_the_matrix_product():
    [prefill] = figures(MEASURED)['prefill']
    assert prefill == pytest.approx({
        'tokens': 32, 'tokens_per_second': 3200, 'milliseconds': 10,
        'fraction_of_matrix_rate': 2 * 1e6 * 32 / 1e-2 / 1e12})


def test_what_was_measured_once_is_there_in_its_unit():
    found = figures(MEASURED)
    once = {key: value for key, value in found.items() if not isinstance(value, list)}
    assert once == pytest.approx({
        'read_bandwidth_gbs': 100, 'copy_bandwidth_gbs': 80, 'matrix_tflops': 1,
        'load_seconds': 1.5, 'peak_memory_bytes': 12345, 'time_to_first_token': 0.25})
