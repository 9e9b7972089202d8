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
"""Has an answer generated as a goal: watches it, gives it a deadline, cancels it on Ctrl-C."""

from __future__ import annotations

import signal
import sys

from action_msgs.msg import GoalStatus
import rclpy
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from tinychat_msgs.action import Generate
from tinychat_msgs.msg import Prompt

_DEADLINE_S = 30.0
_ENDS = {GoalStatus.STATUS_SUCCEEDED: 'succeeded', GoalStatus.STATUS_CANCELED: 'canceled',
         GoalStatus.STATUS_ABORTED: 'aborted'}


class Dispatcher(Node):
    """Sends one goal and follows it to its end."""

    def __init__(self) -> None:
        super().__init__('dispatcher')
        self._client = ActionClient(self, Generate, 'tinychat/generate')
        self._text = ''

    def run(self, text: str) -> None:
        """Send the goal, wait for its result and print it."""
        self._client.wait_for_server()
        deadline = self.get_clock().now() + Duration(seconds=_DEADLINE_S)
        prompt = Prompt(text=text, deadline=deadline.to_msg())
        goal = self._wait(self._client.send_goal_async(
            Generate.Goal(prompt=prompt), self._feedback_callback))
        if not goal.accepted:
            sys.exit('rejected: the node is not active')
        ended, interrupts = goal.get_result_async(), []
        # Not by a KeyboardInterrupt, which may come while rclpy takes a message.
        signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
        print('accepted; Ctrl-C cancels it')
        while not ended.done():
            rclpy.spin_once(self, timeout_sec=0.1)
            if interrupts:
                goal.cancel_goal_async()
                interrupts.clear()
        outcome = ended.result()
        # Feedback that comes after the result is dropped; the result has all of the text.
        print(outcome.result.text[len(self._text):])
        print(f'{_ENDS[outcome.status]} after {outcome.result.completion_tokens} tokens',
              outcome.result.error_msg)

    def _wait(self, future: rclpy.Future) -> object:
        while not future.done():
            rclpy.spin_once(self, timeout_sec=0.1)
        return future.result()

    def _feedback_callback(self, message: Generate.Impl.FeedbackMessage) -> None:
        feedback = message.feedback
        if feedback.queue_position:
            print(f'waiting for {feedback.queue_position} other requests')
        self._text += feedback.chunk.text
        print(feedback.chunk.text, end='', flush=True)


def main() -> None:
    """Ask what the command line says; rclpy's own handler of Ctrl-C would not let it cancel."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Dispatcher()
    node.run(' '.join(remove_ros_args(sys.argv)[1:]) or 'Bring me the red cup.')
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
