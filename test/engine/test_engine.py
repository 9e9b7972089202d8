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
"""The engine over a fake model: turns, slots, limits, interruptions; no weights take part."""

import gc
import json
import threading
import time
import weakref

from fake_model import EOS, FakeRunner, hashed
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import SPECIAL_TOKENS, write_chat_model
import tokenizers

from tinychat_ros.engine.engine import Engine, return_memory
from tinychat_ros.engine.request import FinishReason, Message, Request
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import (
    ChatTemplateError, CheckpointError, ConfigError, EngineBusyError, InvalidRequestError,
    OutOfMemoryError, PromptTooLongError, TokenizerError)

SYSTEM, USER = (256 + SPECIAL_TOKENS.index(token) for token in ('<|system|>', '<|user|>'))


def _ask(engine, text='', **fields):
    """Return the result, after checking what holds for every answer."""
    chunks = list(engine.generate(Request(text=text, **fields)))
    result = chunks[-1].result
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert ''.join(chunk.text for chunk in chunks) == result.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == result.token_ids
    assert result.finish_reason not in (FinishReason.NONE, FinishReason.ERROR)
    assert result.duration >= (result.time_to_first_token or 0.0) >= 0
    return result


def _history(engine, conversation_id):
    return [(m.role, m.content) for c in engine.conversations
            if c.conversation_id == conversation_id for m in c.messages]


def test_a_prompt_is_answered_letter_by_letter_and_ends_with_stop(make_engine):
    chunks = list(make_engine().generate(Request('Hi 🦙!')))
    assert [c.text for c in chunks if c.text] == ['H', 'i', ' ', '🦙', '!']
    result = chunks[-1].result
    assert (result.text, result.finish_reason) == ('Hi 🦙!', FinishReason.STOP)
    assert result.token_ids[-1] == EOS
    assert result.completion_tokens == len('Hi 🦙!'.encode()) + 1
    assert result.prompt_tokens == len('Hi 🦙!'.encode()) + 3


def test_a_second_turn_runs_only_what_is_new(make_engine):
    engine = make_engine(hashed)
    first = _ask(engine, 'one', conversation_id='a', max_new_tokens=10)
    second = _ask(engine, 'two', conversation_id='a', max_new_tokens=10)
    third = _ask(engine, 'three', conversation_id='a', max_new_tokens=10)
    assert first.cached_tokens == 0
    # The last token of an answer was drawn and never run.
    assert second.cached_tokens == first.prompt_tokens + 9
    assert third.cached_tokens == second.prompt_tokens + 9
    assert engine._runner.prefilled[1:] == [r.prompt_tokens - r.cached_tokens
                                            for r in (second, third)]


def test_answers_are_the_same_with_and_without_the_cache(make_engine):
    kept, forgotten = make_engine(hashed), make_engine(hashed, num_slots=1)
    for text in ('one', 'two', 'three'):
        answer = _ask(kept, text, conversation_id='a', max_new_tokens=12)
        _ask(forgotten, 'in between', conversation_id='other', max_new_tokens=3)
        again = _ask(forgotten, text, conversation_id='a', max_new_tokens=12)
        assert again.text == answer.text
        assert again.cached_tokens < 3 or not answer.cached_tokens


def test_two_conversations_do_not_mix(make_engine):
    engine, alone = make_engine(hashed), make_engine(hashed)
    texts = [f'turn {i}' for i in range(4)]
    mixed = {name: [] for name in 'ab'}
    for text in texts:
        for name in 'ab':
            mixed[name].append(_ask(engine, f'{name} {text}', conversation_id=name,
                                    max_new_tokens=6).text)
    for name in 'ab':
        assert mixed[name] == [_ask(alone, f'{name} {text}', conversation_id=name,
                                    max_new_tokens=6).text for text in texts]
    assert _history(engine, 'a') == _history(alone, 'a')


def test_when_slots_run_out_the_least_recently_used_gives_way_and_may_return(make_engine):
    few, many = make_engine(hashed, num_slots=2), make_engine(hashed, num_slots=8)
    for name in 'abcabbacc':
        one, other = (_ask(e, f'hello {name}', conversation_id=name, max_new_tokens=5)
                      for e in (few, many))
        assert one.text == other.text
    assert sorted(few._runner.slots) == [0, 1]
    assert sum(c.slot is not None for c in few.conversations) == 2


def test_the_most_recently_used_keep_their_slots(make_engine):
    engine = make_engine(hashed, num_slots=2)
    for name in 'abac':
        _ask(engine, 'x', conversation_id=name, max_new_tokens=2)
    assert {c.conversation_id for c in engine.conversations if c.slot is not None} == {'a', 'c'}


def test_a_request_without_a_conversation_is_not_remembered(make_engine):
    engine = make_engine(hashed)
    assert _ask(engine, 'x', max_new_tokens=4).text == _ask(engine, 'x', max_new_tokens=4).text
    assert engine.conversations == []


def test_the_same_prompt_again_runs_its_last_token_only(make_engine):
    engine = make_engine(hashed)
    first = _ask(engine, 'hello', max_new_tokens=4)
    again = _ask(engine, 'hello', max_new_tokens=4)
    assert again.text == first.text
    assert again.cached_tokens == again.prompt_tokens - 1
    assert engine._runner.prefilled[-1] == 1


def test_a_prompt_that_does_not_fit_is_refused_with_both_counts(make_engine):
    engine = make_engine(max_seq_len=20)
    with pytest.raises(PromptTooLongError, match='takes 23 tokens.* context of 20 .*at most 19'):
        _ask(engine, 'x' * 20)
    assert _ask(engine, 'x' * 3).text == 'xxx', 'the engine is free again'


def test_a_prompt_that_fills_the_context_leaves_no_room_and_is_refused(make_engine):
    with pytest.raises(PromptTooLongError, match='takes 20 tokens') as error:
        _ask(make_engine(max_seq_len=20), 'x' * 17)
    assert (error.value.prompt_tokens, error.value.max_seq_len) == (20, 20)


def test_a_prompt_of_one_less_than_the_context_gets_one_token(make_engine):
    result = _ask(make_engine(hashed, max_seq_len=20), 'x' * 16)
    assert result.prompt_tokens == 19
    assert (result.completion_tokens, result.finish_reason) == (1, FinishReason.LENGTH)


def test_a_context_that_fills_up_ends_the_answer(make_engine):
    engine = make_engine(hashed, max_seq_len=32)
    result = _ask(engine, 'hello')
    assert result.finish_reason == FinishReason.LENGTH
    assert result.prompt_tokens + result.completion_tokens == 32
    assert max(map(len, engine._runner.slots.values())) == 31


@pytest.mark.parametrize('count', [1, 2, 7])
def test_max_new_tokens_is_the_most_there_are(count, make_engine):
    result = _ask(make_engine(hashed), 'hello', max_new_tokens=count)
    assert (result.completion_tokens, result.finish_reason) == (count, FinishReason.LENGTH)


def test_an_answer_that_ends_at_the_limit_by_itself_stops(make_engine):
    assert _ask(make_engine(), 'abc', max_new_tokens=4).finish_reason == FinishReason.STOP
    assert _ask(make_engine(), 'abc', max_new_tokens=3).finish_reason == FinishReason.LENGTH


@pytest.mark.parametrize('stop, text', [
    (('STOP',), 'go '), (('P and',), 'go STO'), (('nowhere',), 'go STOP and more'),
    (('more', 'and'), 'go STOP '), (('go STOP and more',), ''), (('e',), 'go STOP and mor')])
def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_part_of_it(stop, text,
                                                                           make_engine):
    engine = make_engine()
    result = _ask(engine, 'go STOP and more', stop=stop, conversation_id='a')
    assert (result.text, result.finish_reason) == (text, FinishReason.STOP)
    if text:
        assert _history(engine, 'a')[-1] == ('assistant', text)


@pytest.mark.parametrize('after', [0, 1, 4])
def test_a_cancel_from_another_thread_ends_the_answer_within_one_token(after, make_engine):
    engine, request = make_engine(hashed), Request('x', conversation_id='a')
    chunks = []
    for chunk in engine.generate(request):
        chunks.append(chunk)
        if len(chunks) == after + 1 and not chunk.final:
            canceler = threading.Thread(target=request.cancel)
            canceler.start()
            canceler.join()
    result = chunks[-1].result
    assert result.finish_reason == FinishReason.CANCELED
    assert result.completion_tokens == after + 1
    assert _history(engine, 'a')[-1] == ('assistant', result.text)


def test_a_request_canceled_before_it_starts_has_no_tokens_and_leaves_no_trace(make_engine):
    engine, request = make_engine(hashed), Request('x', conversation_id='a')
    request.cancel()
    chunk, = engine.generate(request)
    assert chunk.result.finish_reason == FinishReason.CANCELED
    assert (chunk.result.text, chunk.result.token_ids) == ('', ())
    assert chunk.result.time_to_first_token is None
    assert _history(engine, 'a') == []


def test_a_deadline_ends_an_answer_and_one_gone_by_prevents_it(make_engine):
    engine = make_engine(lambda tokens: time.sleep(0.002) or 32)
    result = _ask(engine, 'x', deadline=time.monotonic() + 0.05)
    assert result.finish_reason == FinishReason.DEADLINE
    assert 1 <= result.completion_tokens < 60
    late = _ask(engine, 'x', deadline=time.monotonic() - 1)
    assert (late.finish_reason, late.completion_tokens) == (FinishReason.DEADLINE, 0)


def test_a_prefill_can_be_canceled_within_a_piece_and_the_pieces_before_are_kept(chat_model):
    engine = Engine.load(chat_model, device='cpu', prefill_chunk=16)
    request, runs = Request('x' * 100, conversation_id='a'), []
    model = engine._runner._model
    hidden = model.hidden

    def counted(*args):
        runs.append(len(args[0]))
        if len(runs) == 2:
            request.cancel()
        return hidden(*args)

    model.hidden = counted
    *_, chunk = engine.generate(request)
    assert chunk.result.finish_reason == FinishReason.CANCELED
    assert runs == [16, 16]
    assert _ask(engine, 'x' * 100, conversation_id='a', max_new_tokens=1).cached_tokens == 16


@pytest.mark.parametrize('let_go', [lambda g: g.close(), lambda g: None])
def test_closing_the_generator_keeps_what_was_said_and_frees_the_engine(let_go, make_engine):
    engine = make_engine(hashed)
    generator = engine.generate(Request('x', conversation_id='a'))
    said = ''.join(next(generator).text for _ in range(5))
    let_go(generator)
    del generator
    gc.collect()
    assert _history(engine, 'a') == [('user', 'x'), ('assistant', said)]
    assert _ask(engine, 'y', conversation_id='a', max_new_tokens=2).cached_tokens > 5


@pytest.mark.parametrize('names', [('a', 'b'), ('', 'b'), ('', '')])
def test_answers_of_several_conversations_take_turns(names, make_engine):
    alone = [_ask(make_engine(hashed), text, max_new_tokens=9).text for text in 'xy']
    engine = make_engine(hashed)
    first, second = (engine.generate(Request(text, conversation_id=name, max_new_tokens=9))
                     for text, name in zip('xy', names))
    texts = ['', '']
    for turn in (0, 1, 1, 0, 0, 0, 1):
        texts[turn] += next((first, second)[turn]).text
    for turn, rest in enumerate((first, second)):
        texts[turn] += ''.join(chunk.text for chunk in rest)
    assert texts == alone


def test_a_second_answer_of_a_conversation_at_the_same_time_is_refused(make_engine):
    engine = make_engine(hashed)
    running = engine.generate(Request('x', conversation_id='a'))
    next(running)
    with pytest.raises(EngineBusyError, match="'a': expected one answer at a time"):
        next(engine.generate(Request('y', conversation_id='a')))
    assert next(running).text, 'the first one goes on'
    running.close()
    assert _ask(engine, 'y', conversation_id='a', max_new_tokens=1).text


def test_an_answer_more_than_there_are_slots_is_refused(make_engine):
    engine = make_engine(hashed, num_slots=2)
    _ask(engine, 'x', conversation_id='idle', max_new_tokens=1)
    running = [engine.generate(Request('x', conversation_id=name)) for name in 'ab']
    for answer in running:
        next(answer)
    with pytest.raises(EngineBusyError, match='expected a free slot'):
        next(engine.generate(Request('y')))
    running[0].close()
    assert _ask(engine, 'y', max_new_tokens=1).text


def test_a_paused_prefill_goes_on_where_it_was(chat_model):
    engine = Engine.load(chat_model, device='cpu', prefill_chunk=16)
    expected = _ask(engine, 'x' * 100, max_new_tokens=5).text
    engine.reset_all_conversations()
    request = Request('x' * 100, max_new_tokens=5)
    answer = engine.generate(request)
    assert not next(answer).token_ids
    request.pause()
    assert not next(answer).token_ids and not next(answer).token_ids
    request.resume()
    assert ''.join(chunk.text for chunk in answer) == expected


def test_a_reset_while_an_answer_is_paused_leaves_it_its_slot(make_engine):
    engine = make_engine(hashed, num_slots=2)
    expected = _ask(make_engine(hashed), 'x', max_new_tokens=9).text
    paused = engine.generate(Request('x', conversation_id='a', max_new_tokens=9))
    text = next(paused).text
    engine.reset_all_conversations()
    for name in 'bc':
        _ask(engine, 'y', conversation_id=name, max_new_tokens=3)
    assert text + ''.join(chunk.text for chunk in paused) == expected
    for name in 'de':
        _ask(engine, 'y', conversation_id=name, max_new_tokens=3)


def test_a_reset_during_an_answer_forgets_it_and_the_next_one_starts_anew(make_engine):
    engine, fresh = make_engine(hashed), make_engine(hashed)
    _ask(engine, 'x', conversation_id='a', max_new_tokens=3)
    running = engine.generate(Request('y', conversation_id='a', max_new_tokens=6))
    next(running)
    assert engine.reset_conversation('a')
    assert list(running)[-1].result.completion_tokens == 6
    assert engine.conversations == []
    again = _ask(engine, 'z', conversation_id='a', max_new_tokens=6)
    assert again.cached_tokens == 0
    assert again.text == _ask(fresh, 'z', conversation_id='a', max_new_tokens=6).text


def test_resets_while_a_prompt_is_prepared_lose_no_slot(make_engine):
    engine = make_engine(hashed, num_slots=2)
    prepare = engine._prompt

    def reset_meanwhile(conversation, request):
        engine.reset_conversation(conversation.conversation_id)
        return prepare(conversation, request)

    engine._prompt = reset_meanwhile
    for _ in range(5):
        assert _ask(engine, 'x', conversation_id='a', max_new_tokens=2).text
    engine._prompt = prepare
    for name in 'abc':
        _ask(engine, 'x', conversation_id=name, max_new_tokens=2)
    assert sum(c.slot is not None for c in engine.conversations) == 2


def test_a_reset_of_nothing_says_so(make_engine):
    assert make_engine().reset_conversation('nobody') is False


def test_the_last_answer_can_be_cut_to_what_was_heard(make_engine):
    engine = make_engine()
    _ask(engine, 'one', conversation_id='a')
    _ask(engine, 'hello there', conversation_id='a')
    assert engine.cut_last_answer(5, 'a')
    assert _history(engine, 'a')[-2:] == [('user', 'hello there'), ('assistant', 'hello')]
    assert engine.cut_last_answer(0, 'a')
    assert _history(engine, 'a') == [('user', 'one'), ('assistant', 'one')]
    assert not engine.cut_last_answer(1, 'nobody')
    assert _ask(engine, 'two', conversation_id='a').text == 'two'


def test_what_was_heard_of_a_running_answer_is_what_is_remembered(make_engine):
    engine, request = make_engine(), Request('hello there', conversation_id='a')
    for chunk in engine.generate(request):
        if len(chunk.token_ids) and not chunk.final:
            request.heard_chars = 3
    assert chunk.result.text == 'hello there'
    assert _history(engine, 'a')[-1] == ('assistant', 'hel')


def test_messages_replace_the_history(make_engine):
    engine = make_engine()
    _ask(engine, 'old', conversation_id='a')
    messages = (Message('user', 'q'), Message('assistant', 'r'))
    _ask(engine, 'new', messages=messages, conversation_id='a')
    assert _history(engine, 'a') == [('user', 'q'), ('assistant', 'r'), ('user', 'new'),
                                     ('assistant', 'new')]
    result = _ask(engine, messages=(Message('user', 'last'),), conversation_id='a')
    assert result.text == 'last'
    assert _history(engine, 'a') == [('user', 'last'), ('assistant', 'last')]


def _prompt(engine):
    """Return the text of the last prompt and answer, special tokens shown."""
    marks = ('[bos]', '[end]', '[sys]', '[user]', '[bot]')
    names = {256 + i: mark for i, mark in enumerate(marks)}
    tokens = engine._runner.slots[max(engine._runner.slots)]
    return ''.join(names.get(t) or engine.tokenizer.decode([t]) for t in tokens)


def test_the_newest_system_prompt_counts_and_is_kept(make_engine):
    engine = make_engine(num_slots=1, system_prompt='S0')
    _ask(engine, 'a', conversation_id='c')
    assert _prompt(engine).startswith('[sys]S0[end][user]a[end][bot]a')
    _ask(engine, 'b', conversation_id='c', system='S1')
    assert _prompt(engine).startswith('[sys]S1[end][user]a[end][bot]a[end][user]b')
    _ask(engine, 'd', conversation_id='c')
    assert _prompt(engine).startswith('[sys]S1[end]')
    _ask(engine, 'e', conversation_id='c', messages=(Message('system', 'S2'),))
    assert _prompt(engine).startswith('[sys]S2[end][user]e')
    _ask(engine, 'f', conversation_id='c', system='S3')
    assert _prompt(engine).startswith('[sys]S3[end][user]e')
    _ask(engine, 'g', conversation_id='c')
    assert _prompt(engine).count('[sys]') == 1 and _prompt(engine).startswith('[sys]S3')
    _ask(engine, 'h', conversation_id='other')
    assert _prompt(engine).startswith('[sys]S0')


def test_raw_text_goes_on_without_template_and_history(make_engine):
    engine = make_engine(hashed)
    _ask(engine, 'x', conversation_id='a', max_new_tokens=3)
    result = _ask(engine, 'Once', raw=True, conversation_id='a', max_new_tokens=3)
    assert result.prompt_tokens == 4
    assert result.text == _ask(make_engine(hashed), 'Once', raw=True, max_new_tokens=3).text
    assert len(_history(engine, 'a')) == 2
    assert _ask(engine, 'y', conversation_id='a', max_new_tokens=3).prompt_tokens == 12


@pytest.mark.parametrize('text', ['', ' ', '\n\t '])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(InvalidRequestError, match='text: expected a prompt, got an empty one'):
        Request(text)


def test_an_empty_raw_prompt_needs_a_tokenizer_with_a_first_token(make_engine):
    with pytest.raises(InvalidRequestError, match='one token or more, got none'):
        _ask(make_engine(), '', raw=True)


def test_seeds_give_the_same_tokens_and_none_gives_others(chat_model):
    engine = Engine.load(chat_model, device='cpu')

    def answer(seed):
        sampling = SamplingParams(temperature=2.0, seed=seed)
        return _ask(engine, 'hi', sampling=sampling, max_new_tokens=20)

    assert answer(5).token_ids == answer(5).token_ids != answer(6).token_ids
    assert answer(5).seed == 5
    drawn, other = answer(None), answer(None)
    assert drawn.token_ids != other.token_ids
    assert answer(drawn.seed).token_ids == drawn.token_ids
    assert _ask(engine, 'hi', max_new_tokens=5).seed is None


def test_a_real_model_answers_the_same_with_and_without_its_cache(chat_model):
    engine, other = (Engine.load(chat_model, device='cpu', prefill_chunk=c) for c in (256, 5))
    for text in ('one', 'two', 'three'):
        answer = _ask(engine, text, conversation_id='a', max_new_tokens=8)
        other.reset_conversation('a')
        history = tuple(engine.conversations[0].messages[:-2])
        again = _ask(other, text, conversation_id='a', messages=history, max_new_tokens=8)
        assert again.token_ids == answer.token_ids
        assert again.cached_tokens == 0


def test_tokens_are_counted_with_and_without_the_template(make_engine):
    engine = make_engine()
    assert engine.count_tokens('héllo') == 6
    assert engine.count_tokens('héllo', with_chat_template=True) == 9
    assert engine.count_tokens('') == 0
    with pytest.raises(InvalidRequestError, match='text: expected valid Unicode'):
        engine.count_tokens('a\udc80')


def test_what_is_loaded_is_told(chat_model):
    info = Engine.load(chat_model, device='cpu', num_slots=2, max_seq_len=64).info
    assert (info.architecture, info.format, info.dtype) == ('llama', 'plain', 'float32')
    assert (info.vocab_size, info.max_seq_len, info.num_slots) == (261, 64, 2)
    assert info.weight_bytes == 4 * info.parameters


def test_weights_and_cache_go_with_the_engine(chat_model):
    engine = Engine.load(chat_model, device='cpu')
    _ask(engine, 'hi', conversation_id='a', max_new_tokens=5)
    parts = [weakref.ref(part) for part in (
        engine, engine._runner, engine._runner._model, engine._runner._cache)]
    gc.disable()
    try:
        del engine
        return_memory()
        assert [part() for part in parts] == [None] * 4
    finally:
        gc.enable()


def test_the_hash_of_a_model_follows_its_config_and_its_weights(tmp_path):
    def hashed_model():
        return Engine.load(tmp_path, device='cpu').info.model_hash

    write_chat_model(tmp_path)
    first = hashed_model()
    assert len(first) == 64 and hashed_model() == first
    config = tmp_path / 'config.json'
    text = config.read_text()
    config.write_text(f'{text} ')
    assert hashed_model() != first
    config.write_text(text)
    assert hashed_model() == first
    weights = load_file(tmp_path / 'model.safetensors')
    weights['model.norm.weight'] += 1.0
    save_file(weights, tmp_path / 'model.safetensors')
    assert hashed_model() != first


def test_a_model_without_a_template_continues_raw_text_only(tmp_path):
    write_chat_model(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text('{"bos_token": "<s>"}')
    engine = Engine.load(tmp_path, device='cpu')
    with pytest.raises(ChatTemplateError, match='chat template in tokenizer_config.json'):
        _ask(engine, 'hi')
    assert _ask(engine, 'hi', raw=True, max_new_tokens=2).completion_tokens >= 1
    own = tmp_path / 'own.jinja'
    own.write_text('{{ messages[0].content }}')
    engine = Engine.load(tmp_path, device='cpu', chat_template=str(own))
    assert _ask(engine, 'hi', max_new_tokens=2).prompt_tokens == 2


def test_a_template_that_refuses_the_messages_leaves_the_engine_free(tmp_path):
    write_chat_model(tmp_path)
    (tmp_path / 'chat_template.jinja').write_text(
        '{% if messages | length > 1 %}{{ raise_exception("one only") }}{% endif %}hello')
    engine = Engine.load(tmp_path, device='cpu')
    _ask(engine, 'hi', messages=(), max_new_tokens=1)
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match='one only'):
            _ask(engine, 'hi', messages=(Message('user', 'a'), Message('assistant', 'b')))
    _ask(engine, 'hi', max_new_tokens=1)


def _ends(engine, token):
    """Say whether an answer ends with a token."""
    engine.reset_all_conversations()
    engine._runner = FakeRunner(lambda tokens: token, engine.info.vocab_size)
    return _ask(engine, 'hi', max_new_tokens=2).finish_reason == FinishReason.STOP


@pytest.mark.parametrize('in_config, in_generation, expected', [
    (None, None, {EOS}), (7, None, {7, EOS}), ([7, USER], None, {7, USER, EOS}),
    # A letter that only config.json names is a default of the config's class.
    (7, [8, USER], {8, USER, EOS}), ([7, SYSTEM], USER, {SYSTEM, USER, EOS}),
    (USER, [], {USER, EOS}), (USER, None, {USER, EOS})])
def test_an_answer_ends_with_what_the_configs_and_the_tokenizer_name(in_config, in_generation,
                                                                     expected, tmp_path):
    write_chat_model(tmp_path, eos_token_id=in_config)
    (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': in_generation}))
    engine = Engine.load(tmp_path, device='cpu')
    assert {i for i in (7, 8, SYSTEM, USER, EOS) if _ends(engine, i)} == expected


@pytest.mark.parametrize('template, expected', [
    ('{% for m in messages %}{{ m.content }}\n <|user|></s>{% endfor %}', {USER}),
    ('{% for m in messages %}<|system|>{{ m.content }}{% endfor %}', {SYSTEM}),
    ('{% for m in messages %}{{ m.content }}.</s>{% endfor %}', set()),
    ("{% for m in messages if m.role != 'assistant' %}{{ m.content }}</s>{% endfor %}", set()),
    ('{{ raise_exception("no") if messages | length > 1 }}{{ messages[0].content }}</s>', set())])
def test_an_answer_ends_with_the_special_token_that_the_template_puts_behind_it(
        template, expected, tmp_path):
    write_chat_model(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text('{}')
    (tmp_path / 'chat_template.jinja').write_text(template)
    engine = Engine.load(tmp_path, device='cpu')
    assert {i for i in (SYSTEM, USER, EOS) if _ends(engine, i)} == expected


def test_the_checkpoint_recommends_how_long_an_answer_is_and_a_request_overrides_it(tmp_path):
    write_chat_model(tmp_path)
    recommended = tmp_path / 'generation_config.json'
    recommended.write_text('{"max_new_tokens": 5, "max_length": 3}')
    engine = Engine.load(tmp_path, device='cpu', max_seq_len=32)
    engine._runner = FakeRunner(hashed, engine.info.vocab_size)
    assert _ask(engine, 'hi').completion_tokens == 5
    assert _ask(engine, 'hi', max_new_tokens=9).completion_tokens == 9
    for wrong in ('0', '"many"', 'true', '2.5'):
        recommended.write_text(f'{{"max_new_tokens": {wrong}}}')
        with pytest.raises(CheckpointError, match='max_new_tokens: expected a positive integer'):
            Engine.load(tmp_path, device='cpu')


def test_a_request_overrides_how_the_checkpoint_samples(tmp_path):
    write_chat_model(tmp_path)
    (tmp_path / 'generation_config.json').write_text('{"do_sample": true, "temperature": 50.0}')
    engine = Engine.load(tmp_path, device='cpu')
    engine._runner = FakeRunner(hashed, engine.info.vocab_size)
    greedy = SamplingParams()
    answers = [_ask(engine, 'hi', max_new_tokens=12, sampling=s).text for s in (greedy, None)]
    assert answers[0] == _ask(engine, 'hi', max_new_tokens=12, sampling=greedy).text
    assert answers[0] != answers[1]


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_sizes(tmp_path):
    write_chat_model(tmp_path, vocab_size=255)
    with pytest.raises(TokenizerError, match='at most 255 tokens.* got one of 261'):
        Engine.load(tmp_path)


def test_a_template_of_tokens_that_the_model_does_not_embed_is_refused_by_name(tmp_path):
    write_chat_model(tmp_path, vocab_size=260)
    with pytest.raises(TokenizerError, match="the 260 tokens .* got '<.assistant.>' in it"):
        Engine.load(tmp_path)


def test_added_tokens_that_the_model_does_not_embed_are_left_to_texts(tmp_path):
    write_chat_model(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    tokenizer.add_special_tokens(['<image>'])
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    engine = Engine.load(tmp_path, device='cpu')
    assert _ask(engine, 'an <image>', max_new_tokens=2).prompt_tokens > len('an <image>')
    with pytest.raises(InvalidRequestError, match='text: expected tokens below 261, .* got 261'):
        _ask(engine, 'an <image>', raw=True)


def test_a_tokenizer_smaller_than_the_model_is_fine_and_its_strangers_have_no_text(tmp_path):
    write_chat_model(tmp_path, vocab_size=300)
    engine = Engine.load(tmp_path, device='cpu')
    result = _ask(engine, 'hi', sampling=SamplingParams(temperature=100.0, seed=1),
                  max_new_tokens=40)
    assert any(token > 261 for token in result.token_ids)


def test_a_model_that_does_not_fit_the_budget_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_chat_model(tmp_path)
    monkeypatch.setattr('tinychat_ros.engine.engine.load_model', lambda *_: pytest.fail('read'))
    with pytest.raises(OutOfMemoryError, match='fewer slots or a smaller max_seq_len'):
        Engine.load(tmp_path, memory_budget=1000)


def test_weights_that_overflow_end_the_answer_with_an_error_and_free_the_engine(make_engine):
    engine = make_engine(hashed)
    append = engine._runner._append
    engine._runner._append = lambda *args: append(*args) * float('nan')
    with pytest.raises(CheckpointError, match='logits: expected finite numbers'):
        _ask(engine, 'x', conversation_id='a')
    engine._runner._append = append
    assert _ask(engine, 'x', conversation_id='a', max_new_tokens=2).text


def test_a_context_longer_than_the_model_was_trained_for_is_refused(chat_model):
    with pytest.raises(ConfigError, match='max_seq_len: expected at most 512.* got 513'):
        Engine.load(chat_model, max_seq_len=513)


def test_the_answer_that_is_cut_can_be_found_by_its_request(make_engine):
    engine = make_engine()
    for name in 'ab':
        request = Request('hello there', conversation_id=name, request_id=f'of {name}')
        list(engine.generate(request))
    assert not engine.cut_last_answer(5, 'a', 'of b')
    assert not engine.cut_last_answer(5, request_id='of c')
    assert engine.cut_last_answer(5, request_id='of a')
    assert [_history(engine, name)[-1][1] for name in 'ab'] == ['hello', 'hello there']
    assert engine.cut_last_answer(3)
    assert _history(engine, 'b')[-1][1] == 'hel'


def test_after_an_interruption_the_cache_holds_what_was_heard(make_engine):
    engine, request = make_engine(), Request('hello there', conversation_id='a')
    request.heard_chars = 5
    *_, last = engine.generate(request)
    conversation, = engine.conversations
    assert len(conversation.cached_ids) == last.result.prompt_tokens + 5
    result = _ask(engine, 'and', conversation_id='a')
    assert result.cached_tokens == last.result.prompt_tokens + 5
