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
"""Speaks the answers, and falls silent when the user speaks, whose words come on `heard`."""

from __future__ import annotations

from collections import deque
import re
import signal

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from tinychat_msgs.msg import Interrupt, Sentence


def speak(word: str) -> None:
    """Print a word; a speech synthesizer would say it."""
    print(word, end='', flush=True)


class SpeechClient(Node):
    """Says one word after the other, and so knows at any time what was heard."""

    def __init__(self) -> None:
        super().__init__('speech_client')
        # Words to say, each with what the node is told when the user speaks after it.
        self._words: deque[tuple[str, Interrupt | None]] = deque()
        self._interrupt, self._silenced = None, ''
        self._prompts = self.create_publisher(String, 'tinychat/prompt', 10)
        self.interrupts = self.create_publisher(Interrupt, 'tinychat/interrupt', 10)
        self.create_subscription(Sentence, 'tinychat/sentences', self._sentence_callback, 50)
        self.create_subscription(String, 'heard', self._heard_callback, 10)
        self.create_timer(0.2, self._speak_callback)

    def fall_silent(self, reason: str) -> None:
        """End the answer that is being said, if one is."""
        self._words.clear()
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            speak('...\n')
            self._silenced, interrupt.reason = interrupt.request_id, reason
            self.interrupts.publish(interrupt)

    def _sentence_callback(self, sentence: Sentence) -> None:
        if sentence.request_id == self._silenced:
            return
        for word in re.finditer(r'\S+\s*|\s+', sentence.text):
            self._words.append((word[0], Interrupt(
                conversation_id=sentence.conversation_id, request_id=sentence.request_id,
                spoken_char_end=sentence.char_begin + word.end())))
        if sentence.final:
            self._words.append(('\n', None))

    def _speak_callback(self) -> None:
        if self._words:
            word, self._interrupt = self._words.popleft()
            speak(word)

    def _heard_callback(self, heard: String) -> None:
        self.fall_silent('the user spoke')
        self._prompts.publish(heard)


def main() -> None:
    """Speak until Ctrl-C, for which rclpy's own handler would leave no time to interrupt."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node, stops = SpeechClient(), []
    # Not by a KeyboardInterrupt, which may come while rclpy takes a message.
    signal.signal(signal.SIGINT, lambda *_: stops.append(True))
    while not stops:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.fall_silent('Ctrl-C')
    node.interrupts.wait_for_all_acked()
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
