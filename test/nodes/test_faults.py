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
"""What breaks around the node: clients, memory, files. It goes on, or says what is wrong."""

import shutil
import signal
import subprocess
import sys

from node_process import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, ROOT
import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

from tinychat_msgs.msg import Response
from tinychat_msgs.srv import ListConversations

# Each runs until it is killed; the first in the middle of the answer that it asked for.
GOAL_SENDER = '''
client = Client(Known(sys.argv[1]), topics=())
client.wait(client.generate.server_is_ready)
goal = client.send_goal('Once', request_id='orphan', max_new_tokens=1500)
client.wait(lambda: goal.chunks)
'''
LISTENER = '''
client = Client(Known(sys.argv[1])).connect()
'''
PROGRAM = '''
import sys
sys.path.insert(0, 'test/nodes')
from node_process import Client

class Known:
    log = ''
    def __init__(self, namespace):
        self.namespace = namespace

{body}
print('ready', flush=True)
client.wait(lambda: False, 600)
'''
# A node and its client see no shared memory but a full one of their own.
IN_FULL_SHARED_MEMORY = '''
from pathlib import Path
import sys
sys.path.insert(0, 'test/nodes')
from node_process import Client, NodeProcess

process = NodeProcess(Path(sys.argv[1]), model=sys.argv[2], max_seq_len=512)
client = Client(process).connect()
for _ in range(3):
    client.ask('Once', max_new_tokens=50).check()
goal = client.send_goal('Once', max_new_tokens=50)
client.wait(lambda: goal.whole)
client.close()
print('exit code', process.end()[0])
'''


@pytest.fixture
def start():
    """Return a function that runs a program with an argument; it is gone after the test."""
    processes = []

    def run(program, argument):
        processes.append(subprocess.Popen([sys.executable, '-c', program, argument], cwd=ROOT,
                                          stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize('body', [GOAL_SENDER, LISTENER], ids=['client', 'subscriber'])
def test_who_is_killed_in_mid_answer_takes_nobody_along(client, story_node, body, start):
    other = start(PROGRAM.format(body=body), story_node.namespace)
    assert other.stdout.readline() == 'ready\n'
    names = ['orphan']
    if body == LISTENER:
        names = [client.send('Once', max_new_tokens=1500)]
        client.wait_for_chunks(names[0])
    other.send_signal(signal.SIGKILL)
    other.wait()
    names += [client.send('Once', max_new_tokens=5) for _ in range(5)]
    for name in names:
        client.wait(lambda name=name: client.answer(name).whole)
        client.answer(name).check()
        assert client.answer(name).response.finish_reason == Response.LENGTH
    goal = client.send_goal('Once', max_new_tokens=5)
    client.wait(lambda: goal.whole)


@pytest.fixture
def private_shared_memory():
    """Return a shell command that gives what follows it a full /dev/shm; skip where none can."""
    # Far too little for a segment, and enough for the page that the tracer of ROS writes to.
    command = ('mount -t tmpfs -o size=256k tmpfs /dev/shm && '
               'head -c 192k /dev/zero > /dev/shm/full && ')
    try:
        trial = subprocess.run(['unshare', '-m', 'sh', '-c', f'{command}true'],
                               capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if trial.returncode:
        pytest.skip(f'/dev/shm cannot be mounted anew: {trial.stderr.strip()}')
    return command


def test_a_shared_memory_without_a_page_ends_the_node_by_name(private_shared_memory):
    fill = 'head -c 1M /dev/zero > /dev/shm/rest; '
    done = subprocess.run(
        ['unshare', '-m', 'sh', '-c', f'{private_shared_memory}{fill}exec "$@"', 'sh',
         sys.executable, '-m', 'tinychat_ros.nodes.chat_node'],
        cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'tinychat: /dev/shm: expected a free page for ROS, got none: it is full')


def test_a_full_shared_memory_leaves_the_network(private_shared_memory, ros_domain_id,
                                                 story_model, tmp_path):
    done = subprocess.run(
        ['unshare', '-m', 'sh', '-c', f'{private_shared_memory}exec "$@"', 'sh', sys.executable,
         '-c', IN_FULL_SHARED_MEMORY, str(tmp_path), str(story_model)],
        cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout.endswith('exit code 0\n'), done.stderr[-3000:]


def test_a_model_that_is_deleted_is_used_on_and_not_loaded_again(
        start_node, connect, story_model, tmp_path):
    path = shutil.copytree(story_model, tmp_path / 'gone')
    client = connect(start_node(model=path, max_seq_len=512))
    before = client.ask('Once upon a time', max_new_tokens=100)
    shutil.rmtree(path)
    after = client.ask('Once upon a time', max_new_tokens=100)
    after.check()
    assert after.text == before.text
    assert client.transit(DEACTIVATE) and client.transit(CLEANUP)
    assert not client.transit(CONFIGURE)
    assert client.lifecycle_state() == 'unconfigured'
    response = client.ask('Once').response
    assert response.error_code == Response.MODEL_MISSING
    assert str(path) in response.error_msg
    shutil.copytree(story_model, path)
    assert client.transit(CONFIGURE) and client.transit(ACTIVATE)
    assert client.ask('Once upon a time', max_new_tokens=100).text == before.text


def test_a_model_that_does_not_fit_its_budget_is_not_loaded(start_node, connect, story_model):
    client = connect(start_node(model=story_model, num_slots=1000, memory_budget_mb=100))
    response = client.ask('Once').response
    assert response.error_code == Response.MODEL_MISSING
    assert 'expected at most 100 MiB' in response.error_msg
    _set(client, 'num_slots', 1)
    assert client.transit(CONFIGURE) and client.transit(ACTIVATE)
    client.ask('Once', max_new_tokens=5).check()


def test_an_allocation_that_fails_at_load_leaves_a_node_that_can_be_configured(
        start_node, connect, story_model):
    client = connect(start_node(model=story_model, max_seq_len=4096, num_slots=1024,
                                memory_budget_mb=10**6, fault='load'))
    response = client.ask('Once').response
    assert response.error_code == Response.MODEL_MISSING
    assert 'allocate memory' in response.error_msg
    assert client.lifecycle_state() == 'unconfigured'
    _set(client, 'num_slots', 1)
    assert client.transit(CONFIGURE) and client.transit(ACTIVATE)
    client.ask('Once', max_new_tokens=5).check()


def test_an_allocation_that_fails_at_prefill_ends_that_request_alone(
        start_node, connect, story_model):
    node = start_node(model=story_model, max_seq_len=2048, fault='prefill')
    client = connect(node)
    text = 'Once upon a time there was a robot. ' * 10
    for code in (Response.OUT_OF_MEMORY, Response.OUT_OF_MEMORY, Response.INTERNAL):
        waiting = client.send('Once', max_new_tokens=5)
        answer = client.ask(text, conversation_id='a', max_new_tokens=5)
        answer.check()
        assert answer.response.finish_reason == Response.ERROR
        assert answer.response.error_code == code
        client.wait(lambda name=waiting: client.answer(name).whole)
        assert client.answer(waiting).response.error_code == Response.NO_ERROR
    assert client.call(ListConversations, 'list_conversations').conversations == []
    again = client.ask(text, conversation_id='a', max_new_tokens=20)
    fresh = client.ask(text, max_new_tokens=20)
    again.check()
    assert again.text == fresh.text != ''
    assert (again.response.turn, again.response.cached_tokens) == (1, 0)


def _set(client, name, value):
    message = Parameter(name, value=value).to_parameter_msg()
    result, = client.call(SetParameters, 'set_parameters', parameters=[message]).results
    assert result.successful, result.reason
