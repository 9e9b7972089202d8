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
"""The examples, each a process of its own, talk with a node over DDS."""

import os
import signal
import subprocess
import sys

from node_process import PATIENCE_S, ROOT
import pytest
from std_msgs.msg import String

from tinychat_msgs.msg import Interrupt


class Example:
    """An example in the namespace of a node; what it prints is read until something comes."""

    def __init__(self, name, node, *arguments):
        self._process = subprocess.Popen(
            [sys.executable, '-u', '-m', f'tinychat_ros.examples.{name}', *arguments,
             '--ros-args', '-r', f'__ns:={node.namespace}'],
            cwd=ROOT, stdout=subprocess.PIPE)
        os.set_blocking(self._process.stdout.fileno(), False)
        self.printed = ''

    def has_printed(self, text):
        """Take what it printed by now, and tell whether the text is in it."""
        self.printed += (self._process.stdout.read() or b'').decode()
        return text in self.printed

    def end(self, number=None):
        """Send it a signal, if any, and wait for its end; return all that it printed."""
        if number is not None:
            self._process.send_signal(number)
        assert self._process.wait(PATIENCE_S) == 0
        self.has_printed('')
        return self.printed

    def close(self):
        """End it, however the test went."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def start_example():
    """Return a function that starts an example; all end with the test."""
    examples = []

    def start(name, node, *arguments):
        examples.append(Example(name, node, *arguments))
        return examples[-1]

    yield start
    for example in examples:
        example.close()


def test_the_prompt_publisher_prints_the_answer_to_its_prompt(start_example, client, story_node):
    answered = len(client.received['response'])
    printed = start_example('prompt_publisher', story_node, 'Once', 'upon', 'a', 'time').end()
    client.wait(lambda: len(client.received['response']) > answered)
    response = client.received['response'][-1]
    assert response.conversation_id == 'default'
    assert printed == f'{response.text}\n'
    assert response.completion_tokens == 256


def test_the_dispatcher_prints_the_answer_to_its_goal(start_example, client, story_node):
    answered = len(client.received['response'])
    printed = start_example('dispatcher', story_node, 'Once upon a time').end()
    client.wait(lambda: len(client.received['response']) > answered)
    response = client.received['response'][-1]
    assert f'{response.text}\nsucceeded after 256 tokens' in printed


def test_ctrl_c_cancels_the_goal_of_the_dispatcher(start_example, client, story_node):
    # What it asks waits behind these, so that there is time to cancel it.
    before = [client.send('Once upon a time', max_new_tokens=2000) for _ in range(8)]
    client.wait_for_chunks(before[0])
    dispatcher = start_example('dispatcher', story_node)
    client.wait(lambda: dispatcher.has_printed('accepted'))
    assert 'canceled after 0 tokens' in dispatcher.end(signal.SIGINT)
    assert not client.answer(before[-1]).chunks
    for request_id in before:
        client.interrupt.publish(Interrupt(request_id=request_id))
    client.wait(lambda: all(client.answer(request_id).whole for request_id in before))


def repeat(act, client, speech, text):
    """Act until the speech client prints the text: each topic is discovered alone."""
    for _ in range(20):
        act()
        if client.came(lambda: speech.has_printed(text)):
            return
    raise AssertionError(f'expected {text!r} from the speech client, got {speech.printed!r}')


@pytest.mark.parametrize('by', ['the user spoke', 'Ctrl-C'])
def test_the_speech_client_tells_what_was_heard_of_an_answer(
        start_example, client, story_node, by):
    interrupts = []
    subscription = client.node.create_subscription(
        Interrupt, 'tinychat/interrupt', interrupts.append, 10)
    heard = client.node.create_publisher(String, 'heard', 10)
    speech = start_example('speech_client', story_node)
    client.wait(lambda: client.node.count_publishers('tinychat/interrupt') == 2)
    repeat(lambda: client.ask('Once upon a time', max_new_tokens=200), client, speech, ' ')
    if by == 'the user spoke':
        repeat(lambda: heard.publish(String(data='The cat')), client, speech, '...\n')
    spoken = speech.end(signal.SIGINT).split('...\n')[0]
    client.wait(lambda: interrupts)
    client.node.destroy_subscription(subscription)
    client.node.destroy_publisher(heard)
    text = client.answer(interrupts[0].request_id).text
    # It may have found the node in the middle of an answer.
    assert interrupts[0].reason == by
    assert text[:interrupts[0].spoken_char_end].endswith(spoken) and spoken
    assert interrupts[0].spoken_char_end < len(text)
