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
"""A prompt on a topic is answered on topics, chunk by chunk, and nothing is lost."""

from builtin_interfaces.msg import Time
from std_msgs.msg import String

from tinychat_msgs.msg import Response, Status


def seconds(stamp: Time) -> float:
    return stamp.sec + stamp.nanosec * 1e-9


def test_a_prompt_is_answered_chunk_by_chunk(client):
    answer = client.ask('Once upon a time', max_new_tokens=200)
    answer.check()
    assert len(answer.chunks) > 2
    assert len(answer.text) > 200
    assert answer.response.finish_reason == Response.LENGTH
    assert answer.response.completion_tokens == 200
    assert answer.response.error_code == Response.NO_ERROR
    assert 0 < answer.response.time_to_first_token < answer.response.duration


def test_a_plain_string_is_enough(client):
    texts, responses = client.received['text'], client.received['response']
    told, answered = len(texts), len(responses)
    client.prompt.publish(String(data='Once upon a time'))
    client.wait(lambda: len(responses) > answered)
    client.wait(lambda: client.answer(responses[-1].request_id).whole)
    answer = client.answer(responses[-1].request_id)
    answer.check()
    assert answer.response.conversation_id == 'default'
    assert answer.response.completion_tokens == 256
    client.wait(lambda: ''.join(t.data for t in texts[told:]) == answer.text)


def test_the_text_topic_says_what_the_chunks_say(client):
    told = len(client.received['text'])
    answer = client.ask('The cat', max_new_tokens=60)
    client.wait(lambda: ''.join(t.data for t in client.received['text'][told:]) == answer.text)


def test_sentences_are_numbered_and_say_where_they_stand(client):
    answer = client.ask('Once upon a time', max_new_tokens=200)
    sentences = answer.sentences
    assert len(sentences) > 3
    assert [s.index for s in sentences] == list(range(len(sentences)))
    assert [s.final for s in sentences] == [False] * (len(sentences) - 1) + [True]
    assert [answer.text[s.char_begin:s.char_end] for s in sentences] == [s.text for s in sentences]
    assert [s.char_begin for s in sentences[1:]] == [s.char_end for s in sentences[:-1]]
    assert sentences[0].char_begin == 0
    assert all(s.text.rstrip()[-1] in '.!?"' for s in sentences[:-1])


def test_every_message_is_stamped_in_the_order_of_its_making(client):
    before = client.node.get_clock().now().nanoseconds * 1e-9
    answer = client.ask('Once upon a time', max_new_tokens=100)
    after = client.node.get_clock().now().nanoseconds * 1e-9
    for messages in (answer.chunks, answer.sentences, answer.responses):
        stamps = [seconds(message.header.stamp) for message in messages]
        assert stamps == sorted(stamps)
        assert before <= stamps[0] <= stamps[-1] <= after


def test_the_ids_of_request_and_conversation_come_back(client):
    answer = client.ask('Once', request_id='mine', conversation_id='ours', max_new_tokens=20)
    for message in (*answer.chunks, *answer.sentences, answer.response):
        assert (message.request_id, message.conversation_id) == ('mine', 'ours')


def test_a_request_without_an_id_gets_one(client):
    known = {response.request_id for response in client.received['response']}
    client.send('Once', request_id='', max_new_tokens=5)
    client.wait(lambda: client.received['response'][-1].request_id not in known)
    request_id = client.received['response'][-1].request_id
    assert len(request_id) == 32
    client.wait(lambda: client.answer(request_id).whole)
    client.answer(request_id).check()


def test_who_comes_late_gets_the_last_response_and_the_last_status(client, connect, story_node):
    answer = client.ask('The end', max_new_tokens=5)
    late = connect(story_node, topics=('response', 'status'))
    late.wait(lambda: late.received['response'] and late.received['status'])
    assert late.received['response'] == [answer.response]
    assert late.received['status'][-1].state == Status.IDLE
    assert late.received['status'][-1].model == 'stories'


def test_the_first_token_is_published_at_once_and_the_rest_in_portions(client):
    answer = client.ask('Once upon a time', max_new_tokens=400)
    first, *others = answer.chunks
    assert len(first.token_ids) < 5
    stamps = [seconds(chunk.header.stamp) for chunk in answer.chunks]
    gaps = [later - earlier for earlier, later in zip(stamps, stamps[1:-1])]
    assert min(gaps) >= 0.029
    assert sum(len(chunk.token_ids) for chunk in others) > len(others)


def test_the_status_follows_a_request(client):
    request_id = client.send('Once upon a time', conversation_id='ours', max_new_tokens=1000)
    client.wait(lambda: client.status().active_request_id == request_id)
    busy = client.status()
    assert (busy.state, busy.lifecycle_state) == (Status.BUSY, 'active')
    assert (busy.active_conversation_id, busy.device) == ('ours', 'cpu')
    waiting = client.send('The end', max_new_tokens=5)
    client.wait(lambda: client.status().queue_length == 1)
    client.wait(lambda: client.answer(waiting).whole)
    client.wait(lambda: client.status().state == Status.IDLE)
    idle = client.status()
    assert (idle.active_request_id, idle.active_conversation_id) == ('', '')
    assert (idle.queue_length, idle.queue_capacity) == (0, 16)
    assert idle.requests_served == busy.requests_served + 2
    assert idle.requests_failed == busy.requests_failed


def test_any_bytes_that_a_model_says_arrive_alike_on_every_topic(client):
    # At such a temperature every token is as likely as any other: broken UTF-8, and zero bytes.
    answer = client.ask('Once', sampling={'temperature': 100.0, 'seed': 0}, max_new_tokens=1500)
    answer.check()
    assert '\ufffd' in answer.text


def test_the_same_seed_says_the_same_and_another_something_else(client):
    def story(seed):
        return client.ask('Once', sampling={'temperature': 1.0, 'seed': seed},
                          max_new_tokens=60).text

    assert story(7) == story(7) != story(8)


def test_a_stop_string_ends_the_answer_before_it(client):
    whole = client.ask('Once upon a time', max_new_tokens=100).text
    answer = client.ask('Once upon a time', max_new_tokens=100, stop=['girl', 'no such text'])
    answer.check()
    assert answer.response.finish_reason == Response.STOP
    assert answer.text == whole[:whole.index('girl')]
