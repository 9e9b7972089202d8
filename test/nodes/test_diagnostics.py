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
"""The node's entry on /diagnostics: figures that add up, and limits that can be moved."""

from diagnostic_msgs.msg import DiagnosticStatus
from node_process import ACTIVATE, DEACTIVATE
import pytest

from tinychat_msgs.msg import Prompt, Response
from tinychat_msgs.srv import GetModelInfo
from tinychat_ros.nodes.diagnostics import Statistics
from tinychat_ros.nodes.limits import broken_limits, LIMITS
from tinychat_ros.nodes.parameters import SPECS

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
DEFAULTS = {spec.name: spec.default for spec in SPECS}


def counted(*responses):
    """Return the figures after the ends of requests, each published in five chunks."""
    statistics = Statistics()
    for response in responses:
        statistics.count(Response(**response), chunks=5, coalesced=7)
    return statistics.figures()


def test_percentiles_are_of_the_answers_that_had_a_token():
    figures = counted(*({'time_to_first_token': 0.01 * i, 'duration': 0.01 * i + 1.0,
                         'completion_tokens': i + 1} for i in range(1, 21)),
                      {'finish_reason': Response.CANCELED})
    assert figures['requests served'] == 21
    assert figures['time to first token p50 [s]'] == pytest.approx(0.10)
    assert figures['time to first token p95 [s]'] == pytest.approx(0.19)
    assert figures['decode rate p50 [tokens/s]'] == pytest.approx(10.0)
    assert (figures['chunks published'], figures['tokens coalesced']) == (105, 147)


def test_one_answer_is_every_percentile_and_none_is_no_figure():
    figures = counted({'time_to_first_token': 0.5, 'completion_tokens': 1})
    assert figures['time to first token p50 [s]'] == figures['time to first token p95 [s]'] == 0.5
    assert figures['decode rate p50 [tokens/s]'] == ''


def test_a_full_queue_is_a_failure_that_is_counted_on_its_own():
    figures = counted({'error_code': Response.QUEUE_FULL, 'error_msg': 'full'},
                      {'error_code': Response.INTERNAL, 'error_msg': 'a fault'}, {})
    assert figures['requests failed'] == 2
    assert figures['requests rejected, queue full'] == 1
    assert figures['last error'] == 'a fault'


@pytest.mark.parametrize('figure, value, expected', [
    ('free memory [MiB]', 512, []),
    ('free memory [MiB]', 511, [(WARN, 'free memory: expected at least 512 MiB, got 511')]),
    ('free memory [MiB]', 120, [(ERROR, 'free memory: expected at least 128 MiB, got 120')]),
    ('time to first token p95 [s]', '', []),
    ('time to first token p95 [s]', 7.25,
     [(WARN, 'time to first token p95: expected at most 5 s, got 7.25')]),
    ('time to first token p95 [s]', 31.0,
     [(ERROR, 'time to first token p95: expected at most 30 s, got 31')]),
    ('queue in use [%]', 80.0, []),
    ('queue in use [%]', 100.0, [(WARN, 'queue in use: expected at most 80 %, got 100')]),
    ('GPU temperature [C]', 95.5, [(WARN, 'GPU temperature: expected at most 90 C, got 95.5')]),
    ('GPU temperature [C]', 99.5, [(ERROR, 'GPU temperature: expected at most 99 C, got 99.5')])])
def test_a_figure_beyond_its_limit_is_named_with_both(figure, value, expected):
    assert list(broken_limits({figure: value}, DEFAULTS.get)) == expected
    assert list(broken_limits({figure: value}, lambda name: 0)) == []


def test_every_limit_is_a_parameter_that_may_change_at_any_time():
    specs = {spec.name: spec for spec in SPECS}
    for name in (name for limit in LIMITS for name in (limit.warn, limit.error) if name):
        assert not specs[name].at_load and not specs[name].read_only
        assert specs[name].span[0] == 0


@pytest.fixture(scope='module')
def story_node(start_node, story_model):
    """Return a node that tells about itself often."""
    return start_node(model=story_model, max_seq_len=2048, num_slots=2,
                      **{'diagnostics.period_s': 0.2})


def values(client):
    """Return the figures of the next diagnostics."""
    return {pair.key: pair.value for pair in client.diagnostics().values}


def test_the_figures_add_up_to_what_was_published(client):
    assert client.transit(DEACTIVATE) and client.transit(ACTIVATE)
    before = values(client)
    assert before['requests served'] == before['requests failed'] == '0'
    assert before['chunks published'] == before['tokens coalesced'] == '0'
    assert before['time to first token p95 [s]'] == before['last error'] == ''

    running = client.send('Once', conversation_id='a', max_new_tokens=1000)
    client.wait_for_chunks(running)
    urgent = client.send('There was', conversation_id='b', max_new_tokens=5, priority=9,
                         policy=Prompt.PREEMPT)
    refused = client.send('Once', policy=Prompt.REJECT_IF_BUSY)
    client.wait(lambda: all(client.answer(name).whole for name in (running, urgent, refused)))
    figures = values(client)
    answers = [client.answer(name) for name in (running, urgent, refused)]
    chunks = [chunk for answer in answers for chunk in answer.chunks]
    assert int(figures['chunks published']) == len(chunks)
    assert int(figures['tokens coalesced']) == sum(
        max(len(chunk.token_ids) - 1, 0) for chunk in chunks)
    assert (figures['requests served'], figures['requests failed']) == ('2', '1')
    assert figures['requests rejected, queue full'] == figures['preemptions'] == '1'
    assert figures['last error'] == client.answer(refused).response.error_msg != ''
    assert (figures['queue length'], figures['queue in use [%]']) == ('0', '0.000')
    first = sorted(answer.response.time_to_first_token for answer in answers[:2])
    assert float(figures['time to first token p50 [s]']) == pytest.approx(first[0], abs=1e-3)
    assert float(figures['time to first token p95 [s]']) == pytest.approx(first[1], abs=1e-3)

    # The last token of an answer is not put into the cache.
    in_slots = sum(answer.response.prompt_tokens + answer.response.completion_tokens - 1
                   for answer in answers[:2])
    assert int(figures['KV positions used']) == in_slots
    assert int(figures['KV positions']) == 2 * 2048


def test_the_model_is_told_by_name_and_hash(client):
    figures = values(client)
    info = client.call(GetModelInfo, 'get_model_info')
    assert (figures['model'], figures['device']) == ('stories', 'cpu')
    assert figures['model hash'] == info.model_hash
    assert len(info.model_hash) == 64


def test_a_limit_that_is_moved_warns_and_moved_back_does_not(client):
    assert client.set_parameter('diagnostics.memory_warn_mb', 999999) == ''
    status = client.diagnostics()
    assert status.level == WARN
    assert 'free memory: expected at least 999999 MiB, got ' in status.message
    client.ask('Once', max_new_tokens=5)
    assert client.set_parameter('diagnostics.first_token_error_s', 1e-9) == ''
    status = client.diagnostics()
    assert status.level == ERROR
    assert 'time to first token p95: expected at most 1e-09 s, got ' in status.message
    assert 'free memory' in status.message
    assert client.set_parameter('diagnostics.first_token_error_s', 0.0) == ''
    assert client.set_parameter('diagnostics.memory_warn_mb', 0) == ''
    status = client.diagnostics()
    assert (status.level, status.message) == (OK, 'active')
