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
"""What is told of the machine in a round, and the process that competes for it."""

from types import SimpleNamespace

from benchmarks import conditions
from benchmarks.conditions import competitor, Conditions
import pytest

_STAT = ('cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 50 10 15 2000 25 3 3 4 4 5\n'
         'intr 12345\nctxt 678\n')


def test_idle_waiting_and_guest_time_are_not_counted_as_busy():
    assert conditions.busy_seconds(_STAT, 100) == (100 + 20 + 30 + 6 + 7 + 8) / 100


def test_a_round_has_the_foreign_load_of_its_own_time(monkeypatch):
    foreign, clock = iter([10.0, 13.0, 20.0, 19.99]), iter([100.0, 102.0, 200.0, 201.0])
    monkeypatch.setattr(conditions, '_foreign_seconds', lambda: next(foreign))
    monkeypatch.setattr(conditions.time, 'perf_counter', lambda: next(clock))
    monkeypatch.setattr(conditions, 'Bandwidth', lambda device: SimpleNamespace(
        read=lambda: 25e9))
    rounds = []
    for _ in range(2):
        with conditions.watched(rounds):
            pass
    assert rounds == [Conditions(25, 1.5), Conditions(25, 0)]
    assert conditions.lines(rounds)[0] == (
        'round 1: 25.0 GB/s read, 1.50 cores busy with other work')


def test_the_competitor_ends_with_its_round(monkeypatch):
    started = []
    popen = conditions.subprocess.Popen
    monkeypatch.setattr(conditions.subprocess, 'Popen', lambda *arguments: started.append(
        popen(*arguments)) or started[-1])
    with pytest.raises(KeyError), competitor():
        assert started[0].poll() is None
        raise KeyError
    assert started[0].poll() is not None
