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
"""Many prompts, many clients, slow clients: nothing is lost and nobody holds the others up."""

import signal
import subprocess
import sys
import time

import pytest

from tinychat_msgs.msg import Interrupt, Response
from tinychat_msgs.srv import ResetConversation

CAPACITY = 300

# A listener that takes ten seconds for what an answer brings in one.
LISTENER = '''
import sys
import time
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from tinychat_msgs.msg import Response, Sentence, TokenChunk
from std_msgs.msg import String

def hear(message):
    print('heard', flush=True)
    time.sleep(0.1)

rclpy.init()
node = rclpy.create_node('listener', namespace=sys.argv[1])
for kind, name in ((TokenChunk, 'tokens'), (String, 'text'), (Sentence, 'sentences'),
                   (Response, 'response')):
    qos = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL
                     if kind is Response else DurabilityPolicy.VOLATILE)
    node.create_subscription(kind, f'tinychat/{name}', hear, qos)
try:
    rclpy.spin(node)
except KeyboardInterrupt:
    rclpy.try_shutdown()
'''


@pytest.fixture(scope='module')
def story_node(start_node, story_model):
    """Return a node with a long queue, which publishes every token on its own."""
    return start_node(model=story_model, max_seq_len=2048, queue_capacity=CAPACITY,
                      **{'stream.flush_ms': 0})


def test_of_200_prompts_in_a_row_no_chunk_is_lost(client):
    begin = time.monotonic()
    ids = [client.send('Once upon a time', request_id=f'row {i}', max_new_tokens=10 + i % 20)
           for i in range(200)]
    client.wait(lambda: len({r.request_id for r in client.received['response']} & set(ids)) == 200)
    client.wait(lambda: all(client.answer(request_id).whole for request_id in ids))
    print(f'\n200 prompts: {time.monotonic() - begin:.2f} s')
    for i, request_id in enumerate(ids):
        answer = client.answer(request_id)
        answer.check()
        assert answer.response.error_code == Response.NO_ERROR
        assert answer.response.completion_tokens == 10 + i % 20
    served = [r.request_id for r in client.received['response'] if r.request_id in set(ids)]
    assert served == ids
    longest = max((client.answer(request_id).text for request_id in ids), key=len)
    assert all(longest.startswith(client.answer(request_id).text) for request_id in ids)


@pytest.fixture(scope='module')
def small(start_node, story_model):
    """Return a node where no more than five requests may wait."""
    return start_node(model=story_model, max_seq_len=2048, queue_capacity=5)


@pytest.fixture(scope='module')
def small_client(connect, small):
    return connect(small)


def test_a_burst_beyond_the_queue_is_refused_for_exactly_the_surplus(small_client):
    client = small_client
    running = client.send('Once', max_new_tokens=2000)
    client.wait_for_chunks(running)
    ids = [client.send('Once', max_new_tokens=5) for _ in range(40)]
    client.wait(lambda: all(client.answer(request_id).whole for request_id in ids[5:]))
    assert not client.answer(running).responses
    client.interrupt.publish(Interrupt(request_id=running))
    client.wait(lambda: all(client.answer(request_id).whole for request_id in (running, *ids)))
    codes = [client.answer(request_id).response.error_code for request_id in ids]
    assert codes == [Response.NO_ERROR] * 5 + [Response.QUEUE_FULL] * 35
    for request_id in (running, *ids):
        client.answer(request_id).check()
    refusal = client.answer(ids[-1]).response
    assert 'queue: expected at most 5 waiting requests' in refusal.error_msg


def test_an_idle_node_takes_one_more_than_may_wait(small_client):
    client = small_client
    ids = [client.send('Once', max_new_tokens=2000) for _ in range(8)]
    client.wait(lambda: all(client.answer(request_id).whole for request_id in ids[6:]))
    # It also cancels whatever runs and waits.
    assert client.call(ResetConversation, 'reset_conversation').success
    client.wait(lambda: all(client.answer(request_id).whole for request_id in ids))
    codes = [client.answer(request_id).response.error_code for request_id in ids]
    assert codes == [Response.NO_ERROR] * 6 + [Response.QUEUE_FULL] * 2


def test_requests_of_several_clients_are_answered_to_all(client, connect, story_node):
    clients = [client, connect(story_node), connect(story_node)]
    ids = [each.send('There was', max_new_tokens=20) for _ in range(5) for each in clients]
    for each in clients:
        each.wait(lambda each=each: all(each.answer(request_id).whole for request_id in ids))
        for request_id in ids:
            each.answer(request_id).check()
    assert len({client.answer(request_id).text for request_id in ids}) == 1


@pytest.fixture(params=['sleeps', 'hangs'])
def listener(small, request):
    """Start a process that is slow to listen; return a function that waits until it listens."""
    process = subprocess.Popen([sys.executable, '-c', LISTENER, small.namespace],
                               stdout=subprocess.PIPE, text=True)

    def listening():
        # The last response waits for it.
        assert process.stdout.readline() == 'heard\n'
        if request.param == 'hangs':
            process.send_signal(signal.SIGSTOP)

    yield listening
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_a_listener_that_lags_holds_nobody_up(small_client, listener):
    def told():
        answer = small_client.ask('Once', max_new_tokens=600)
        answer.check()
        return answer.response.duration

    alone = min(told() for _ in range(2))
    listener()
    beside = [told() for _ in range(2)]
    print(f'\nalone {alone:.2f} s, beside a listener that lags {min(beside):.2f} s')
    assert min(beside) < 2 * alone + 0.5
