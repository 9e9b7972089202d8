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
"""The security policy allows what the running node does, and not more."""

from __future__ import annotations

from xml.etree import ElementTree

from node_process import ROOT
import pytest

# Not in every ROS, only with a parameter, or only with a model that sees.
SOMETIMES = {('subscribe', '/clock'), ('reply', '~/get_type_description'),
             ('subscribe', '~/image'), ('subscribe', '~/image/compressed')}
ACTION_PARTS = {
    'execute': [('publish', 'feedback'), ('publish', 'status'), ('reply', 'cancel_goal'),
                ('reply', 'get_result'), ('reply', 'send_goal')],
    'call': [('subscribe', 'feedback'), ('subscribe', 'status'), ('request', 'cancel_goal'),
             ('request', 'get_result'), ('request', 'send_goal')],
}


def allowed(node: str) -> set[tuple[str, str]]:
    """Return the rules of a node's profile: what may be done, and the name with which."""
    policy = ElementTree.parse(ROOT / 'config' / 'tinychat_policy.xml')
    rules = set()
    for group in policy.find(f'.//profile[@node="{node}"]'):
        [(verb, qualifier)] = group.attrib.items()
        assert qualifier == 'ALLOW'
        for name in group:
            rules.update((part_verb, f'{name.text}/_action/{part}')
                         for part_verb, part in ACTION_PARTS.get(verb, []))
            if verb not in ACTION_PARTS:
                rules.add((verb, name.text))
    return rules


@pytest.fixture(scope='module')
def real(client, story_node) -> dict[tuple[str, str], str]:
    """Return what the running node does, and the type of each."""
    named = ('tinychat', story_node.namespace)
    client.wait(lambda: named in client.node.get_node_names_and_namespaces())
    own = f'{story_node.namespace}/tinychat/'
    calls = {'publish': 'publisher', 'subscribe': 'subscriber', 'reply': 'service',
             'request': 'client'}
    return {
        (verb, name.replace(own, '~/')): kinds[0]
        for verb, kind in calls.items()
        for name, kinds in getattr(client.node, f'get_{kind}_names_and_types_by_node')(
            'tinychat', story_node.namespace)}


def test_the_node_may_do_what_it_does(real):
    assert allowed('tinychat') - SOMETIMES == set(real) - SOMETIMES


def test_a_client_may_use_what_the_node_offers_to_clients(real):
    mirrored = {'publish': 'subscribe', 'subscribe': 'publish', 'reply': 'request'}
    offered = {
        (mirrored[verb], name.replace('~/', 'tinychat/')) for (verb, name), kind in real.items()
        if name.startswith('~/') and (
            kind.startswith(('tinychat_msgs/', 'std_msgs/')) or '/_action/' in name)}
    used = {(verb, name) for verb, name in allowed('tinychat_client')
            if name.startswith('tinychat/')}
    assert used == offered


def test_a_client_may_do_for_itself_what_every_node_does():
    own = {(verb, name) for verb, name in allowed('tinychat_client')
           if not name.startswith('tinychat/')}
    assert own <= allowed('tinychat')
    assert {name for verb, name in own if verb == 'publish'} == {'/parameter_events', '/rosout'}
    assert {name for verb, name in own if verb == 'reply'} == {
        name for verb, name in allowed('tinychat') if 'parameter' in name and verb == 'reply'
    } | {'~/get_type_description'}
