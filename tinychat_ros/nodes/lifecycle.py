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
"""What rclpy's lifecycle services leave undone."""

from __future__ import annotations

from lifecycle_msgs.srv import ChangeState
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode


def answer_impossible_transitions(node: LifecycleNode) -> None:
    """
    Let ``~/change_state`` answer a transition that the node's state does not have.

    rclpy raises out of the service's callback instead, and the caller waits for ever.
    """
    service = next(s for s in node.services if s.srv_type is ChangeState)
    change_state = service.callback

    def answer(request: ChangeState.Request,
               response: ChangeState.Response) -> ChangeState.Response:
        try:
            return change_state(request, response)
        except rclpy_implementation.RCLError as error:
            node.get_logger().warning(f'change_state: {error}')
            response.success = False
            return response

    service.callback = answer
