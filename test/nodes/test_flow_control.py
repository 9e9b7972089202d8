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
"""Who listens, who does not and who has stopped makes no difference to an answer."""

from pathlib import Path
import signal
import subprocess
import sys
import time

from node_process import PATIENCE_S
import pytest
import rclpy.serialization

from tinychat_msgs.msg import TokenChunk

# Prints each chunk that it hears as one line.
LISTENER = '''
import sys
import rclpy
from tinychat_msgs.msg import TokenChunk

rclpy.init()
node = rclpy.create_node('listener', namespace=sys.argv[1])
node.create_subscription(
    TokenChunk, 'tinychat/tokens', lambda data: print(data.hex(), flush=True), 1000, raw=True)
try:
    rclpy.spin(node)
except KeyboardInterrupt:
    rclpy.try_shutdown()
'''


class Listener:
    """A process that listens to `~/tokens`, and can be stopped."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self._path = folder / 'heard'
        with open(self._path, 'w') as heard:
            self._process = subprocess.Popen(
                [sys.executable, '-c', LISTENER, namespace], stdout=heard)

    @property
    def chunks(self) -> list[TokenChunk]:
        """Return what it heard by now."""
        whole = self._path.read_text().rpartition('\n')[0]
        return [rclpy.serialization.deserialize_message(bytes.fromhex(line), TokenChunk)
                for line in whole.splitlines()]

    @property
    def stopped(self) -> bool:
        """Tell whether the kernel has stopped it."""
        stat = Path(f'/proc/{self._process.pid}/stat').read_text()
        return stat.rpartition(')')[2].split()[0] == 'T'

    def stop(self) -> None:
        """Stop it, and return when it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        while not self.stopped:
            time.sleep(0.01)

    def go_on(self) -> None:
        """Let it run again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self.go_on()
        self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE_S)


@pytest.fixture(scope='module')
def story_node(start_node, story_model):
    """Return a node that publishes every token on its own."""
    return start_node(model=story_model, max_seq_len=2048, **{'stream.flush_ms': 0})


@pytest.fixture
def listener(client, story_node, tmp_path):
    """Return a listener that hears the node."""
    listener = Listener(story_node.namespace, tmp_path)
    try:
        client.wait(lambda: client.ask('knock', max_new_tokens=2) and listener.chunks)
        yield listener
    finally:
        listener.close()


def of(chunks, answer):
    """Return the chunks of an answer."""
    return [c for c in chunks if c.request_id == answer.response.request_id]


def test_an_answer_ends_while_a_listener_has_stopped_and_is_heard_when_it_goes_on(
        client, listener):
    listener.stop()
    answer = client.ask('Once upon a time', max_new_tokens=900)
    assert listener.stopped
    answer.check()
    assert answer.response.completion_tokens == 900
    assert of(listener.chunks, answer) == []
    listener.go_on()
    client.wait(lambda: any(chunk.final for chunk in of(listener.chunks, answer)))
    assert of(listener.chunks, answer) == answer.chunks


def test_a_listener_that_missed_more_than_is_kept_holds_nobody_up(client, listener):
    listener.stop()
    answers = [client.ask('Once upon a time', max_new_tokens=1500) for _ in range(2)]
    assert listener.stopped
    for answer in answers:
        answer.check()
        assert answer.response.completion_tokens == 1500
    listener.go_on()
    client.wait(lambda: any(chunk.final for chunk in of(listener.chunks, answers[1])))
    assert of(listener.chunks, answers[1])[-1] == answers[1].chunks[-1]


def test_several_listeners_hear_the_same_messages(client, connect, story_node):
    others = [connect(story_node) for _ in range(2)]
    ids = [client.send(text, conversation_id=text, max_new_tokens=200)
           for text in ('Once upon a time', 'The cat')]
    for each in (client, *others):
        each.wait(lambda each=each: all(each.answer(name).whole for name in ids))
    for name in ids:
        client.answer(name).check()
        assert len(client.answer(name).chunks) > 100
        assert all(each.answer(name) == client.answer(name) for each in others)


def test_without_a_listener_an_answer_is_made_and_its_end_waits_for_who_comes_late(
        connect, start_node, story_model):
    node = start_node(model=story_model, max_seq_len=2048, **{'stream.flush_ms': 0})
    deaf = connect(node, topics=('status',))
    name = deaf.send('Once upon a time', max_new_tokens=300)
    deaf.wait(lambda: deaf.received['status'] and deaf.status().requests_served == 1)
    late = connect(node, topics=('response', 'status'))
    late.wait(lambda: late.received['response'] and late.received['status'])
    response, = late.received['response']
    assert (response.request_id, response.completion_tokens) == (name, 300)
    assert late.status().requests_served == 1
