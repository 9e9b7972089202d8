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
"""Times are summarized, and what is timed is called as often as was asked for."""

import pytest
import torch

from tinychat_ros.bench.timing import summary, timed, timed_by_host, Timing

CPU = torch.device('cpu')


def test_a_summary_is_the_median_between_deciles():
    assert summary([float(i) for i in (11, 1, 3, 2, 5, 4, 7, 6, 9, 8, 10)]) == (6, 2, 10)
    assert summary([3.0]) == (3, 3, 3)


def test_a_timing_can_be_that_of_a_part():
    assert Timing(8.0, 4.0, 12.0).scaled(0.25) == (2, 1, 3)


@pytest.mark.parametrize('graph', [False, True])
def test_work_is_warmed_up_and_repeated(graph):
    calls = []
    timing = timed(lambda: calls.append(1), CPU, repeats=5, graph=graph)
    assert len(calls) == 3 + 5
    assert 0 < timing.p10 <= timing.median <= timing.p90


def test_work_by_the_host_s_clock_is_done_as_often_as_asked_for():
    calls = []
    assert timed_by_host(lambda: calls.append(1), CPU, repeats=2).median > 0
    assert len(calls) == 2
