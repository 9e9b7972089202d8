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
"""The lifecycle: without a model the node says why and waits; every transition can be undone."""

import shutil

from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import (
    ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, INACTIVE_SHUTDOWN, UNCONFIGURED_SHUTDOWN)
import pytest

from tinychat_msgs.msg import Response, Status
from tinychat_msgs.srv import CountTokens, GetModelInfo, ListConversations, ResetConversation

QUICK = {'diagnostics.period_s': 0.2}


def values(diagnostics):
    """Return the values of a diagnostic status."""
    return {pair.key: pair.value for pair in diagnostics.values}


def broken_model(kind, story_model, folder):
    """Return a folder that cannot be loaded, and what the error says of it."""
    if kind == 'missing':
        return folder / 'nowhere', 'nowhere'
    path = folder / kind
    shutil.copytree(story_model, path)
    if kind == 'cut':
        weights = (path / 'model.safetensors').read_bytes()
        (path / 'model.safetensors').write_bytes(weights[:len(weights) // 2])
        return path, 'model.safetensors'
    (path / 'tokenizer.json').write_bytes(b'{"version": "\xff\xfe"}')
    return path, 'expected a readable tokenizer'


@pytest.mark.parametrize('kind', ['missing', 'cut', 'not utf-8'])
def test_a_model_that_cannot_be_loaded_is_named_and_another_takes_its_place(
        start_node, connect, story_model, tmp_path, kind):
    path, named = broken_model(kind, story_model, tmp_path)
    node = start_node(model=path, max_seq_len=512, **QUICK)
    client = connect(node)

    assert 'configure failed' in node.log and named in node.log
    assert client.lifecycle_state() == 'unconfigured'
    status = client.status()
    assert (status.state, status.lifecycle_state, status.model) == (
        Status.IDLE, 'unconfigured', '')

    diagnostics = client.diagnostics()
    assert diagnostics.level == DiagnosticStatus.ERROR
    assert named in diagnostics.message
    assert values(diagnostics)['lifecycle state'] == 'unconfigured'

    answer = client.ask('Once')
    answer.check()
    assert answer.response.error_code == Response.MODEL_MISSING
    assert named in answer.response.error_msg
    assert not client.send_goal('Once').handle.accepted
    for service, name in ((CountTokens, 'count_tokens'), (GetModelInfo, 'get_model_info'),
                          (ListConversations, 'list_conversations'),
                          (ResetConversation, 'reset_conversation')):
        response = client.call(service, name)
        assert not response.success and named in response.message

    assert not client.transit(CONFIGURE)
    assert client.lifecycle_state() == 'unconfigured'
    assert client.set_parameter('model', str(story_model)) == ''
    assert client.transit(CONFIGURE) and client.transit(ACTIVATE)
    client.ask('Once', max_new_tokens=10).check()
    goal = client.send_goal('Once', max_new_tokens=10)
    client.wait(lambda: goal.whole)
    assert goal.status == GoalStatus.STATUS_SUCCEEDED
    assert client.diagnostics().level == DiagnosticStatus.OK


@pytest.fixture(scope='module')
def managed(start_node, connect, story_model):
    """Return a client of a node that waits for a lifecycle manager."""
    return connect(start_node(model=story_model, max_seq_len=2048, autostart=False, **QUICK))


@pytest.fixture
def active(managed):
    """Return a client of an active node."""
    if managed.lifecycle_state() == 'unconfigured':
        assert managed.transit(CONFIGURE)
    if managed.lifecycle_state() == 'inactive':
        assert managed.transit(ACTIVATE)
    return managed


def test_without_autostart_the_node_waits_to_be_configured(managed):
    assert managed.lifecycle_state() == 'unconfigured'
    assert managed.status().lifecycle_state == 'unconfigured'
    diagnostics = managed.diagnostics()
    assert (diagnostics.level, diagnostics.message) == (DiagnosticStatus.WARN, 'unconfigured')
    response = managed.ask('Once').response
    assert response.error_code == Response.MODEL_MISSING
    assert 'got unconfigured' in response.error_msg
    assert not managed.send_goal('Once').handle.accepted


def test_an_inactive_node_describes_its_model_and_refuses_prompts(managed):
    assert managed.transit(CONFIGURE)
    assert managed.lifecycle_state() == 'inactive'
    managed.wait(lambda: managed.status().lifecycle_state == 'inactive')
    assert managed.status().model == 'stories'
    assert managed.call(GetModelInfo, 'get_model_info').name == 'stories'
    assert managed.call(CountTokens, 'count_tokens', text='Once').success
    assert 'got inactive' in managed.ask('Once').response.error_msg
    assert not managed.send_goal('Once').handle.accepted
    assert managed.diagnostics().level == DiagnosticStatus.WARN


def test_the_diagnostics_of_an_active_node_give_its_figures(active):
    served = int(values(active.diagnostics())['requests served'])
    active.ask('Once', max_new_tokens=50)
    active.ask('')
    diagnostics = active.diagnostics()
    assert (diagnostics.level, diagnostics.message) == (DiagnosticStatus.OK, 'active')
    assert diagnostics.hardware_id == 'cpu'
    figures = values(diagnostics)
    assert int(figures['requests served']) == served + 1
    assert int(figures['requests failed']) >= 1
    assert figures['model'] == 'stories'
    assert figures['queue length'] == '0'
    assert 0 < float(figures['time to first token p50 [s]']) < 10
    assert float(figures['decode rate p50 [tokens/s]']) > 1
    assert 'text: expected a prompt' in figures['last error']


def test_a_deactivation_ends_what_runs_and_what_waits_with_results(active):
    running = active.send_goal('Once', request_id='runs', max_new_tokens=2000)
    active.wait(lambda: running.chunks)
    goal = active.send_goal('The cat', request_id='waits')
    waiting = active.send('The dog')
    active.wait(lambda: active.status().queue_length == 2)
    assert active.transit(DEACTIVATE)
    active.wait(lambda: running.whole and goal.whole and active.answer(waiting).whole)
    for request_id in ('runs', 'waits', waiting):
        active.wait(lambda name=request_id: active.answer(name).whole)
        active.answer(request_id).check()
        assert active.answer(request_id).response.finish_reason == Response.CANCELED
    assert running.result.completion_tokens > 0
    assert goal.result.completion_tokens == 0
    # Nobody asked to cancel these goals, so for their clients they failed.
    assert running.status == goal.status == GoalStatus.STATUS_ABORTED
    active.wait(lambda: active.status().lifecycle_state == 'inactive')
    assert (active.status().state, active.status().queue_length) == (Status.IDLE, 0)
    assert active.transit(ACTIVATE)
    active.ask('Once', max_new_tokens=5).check()


def test_conversations_outlive_a_deactivation_and_not_a_cleanup(active):
    active.ask('Once', conversation_id='kept', max_new_tokens=5)
    assert active.transit(DEACTIVATE) and active.transit(ACTIVATE)
    names = [c.conversation_id
             for c in active.call(ListConversations, 'list_conversations').conversations]
    assert 'kept' in names
    assert active.transit(DEACTIVATE) and active.transit(CLEANUP)
    active.wait(lambda: active.status().lifecycle_state == 'unconfigured')
    assert active.status().model == ''
    assert not active.call(GetModelInfo, 'get_model_info').success
    assert active.transit(CONFIGURE) and active.transit(ACTIVATE)
    assert active.call(ListConversations, 'list_conversations').conversations == []


@pytest.mark.parametrize('transition', [CONFIGURE, CLEANUP, ACTIVATE, UNCONFIGURED_SHUTDOWN, 250])
def test_an_impossible_transition_is_answered_and_changes_nothing(active, transition):
    assert not active.transit(transition)
    assert active.lifecycle_state() == 'active'
    active.ask('Once', max_new_tokens=5).check()


def test_a_shut_down_node_answers_that_it_is_finalized(start_node, connect, story_model):
    node = start_node(model=story_model, max_seq_len=512)
    client = connect(node)
    assert client.transit(DEACTIVATE) and client.transit(INACTIVE_SHUTDOWN)
    assert client.lifecycle_state() == 'finalized'
    client.wait(lambda: client.status().lifecycle_state == 'finalized')
    assert 'got finalized' in client.ask('Once').response.error_msg
    assert node.end(2)[0] == 0
