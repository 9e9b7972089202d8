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
"""Fall-back templates: who gets which, what they render, and that any other template wins."""

import logging

from fake_model import FakeRunner
import pytest
from tiny_models import SPECIAL_TOKENS, write_chat_model

from tinychat_ros.engine.chat_fallback import FALLBACKS, find_fallback
from tinychat_ros.engine.chat_template import ChatTemplate
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import FinishReason, Message, Request
from tinychat_ros.errors import ChatTemplateError

_CHATML = ('<|im_start|>', '<|im_end|>')
_TALK = [('system', 'S'), ('user', 'a'), ('assistant', 'b'), ('user', 'c')]
RENDERED = {
    'vicuna': '<s>S USER: a ASSISTANT: b</s>USER: c ASSISTANT:',
    'llama2_chat': '<s>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]',
    'mpt_chat': '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n'
                '<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n'
                '<|im_start|>assistant\n',
    'falcon_instruct': 'S\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant:',
}
BEGINNINGS = {'vicuna': '<s>USER: a ASSISTANT: b', 'llama2_chat': '<s>[INST] a [/INST] b',
              'mpt_chat': '<|im_start|>user\na<|im_end|>', 'falcon_instruct': 'User: a\n\n'}


def _render(name, pairs):
    source = next(fallback.source for fallback in FALLBACKS if fallback.name == name)
    return ChatTemplate(source, {}).render([Message(*pair) for pair in pairs])


def _found(folder, model_type, origin=None, tokens=(), **config):
    config = {'model_type': model_type, '_name_or_path': origin, **config}
    fallback = find_fallback(folder, config, tokens)
    return fallback and fallback.name


@pytest.mark.parametrize('name', RENDERED)
def test_a_talk_is_rendered_in_the_format_of_its_family(name):
    assert _render(name, _TALK) == RENDERED[name]
    assert _render(name, _TALK[1:]).startswith(BEGINNINGS[name])


@pytest.mark.parametrize('name', [name for name in RENDERED if name != 'mpt_chat'])
@pytest.mark.parametrize('pairs', [[('user', 'a'), ('system', 'b')], [('tool', 'a')]])
def test_roles_that_a_format_has_no_words_for_are_refused(name, pairs):
    if (name, pairs[0][0]) == ('falcon_instruct', 'user'):
        assert _render(name, pairs) == 'User: a\n\nb\n\nAssistant:'
        return
    with pytest.raises(ChatTemplateError, match='refuses the messages: '):
        _render(name, pairs)


@pytest.mark.parametrize('folder, model_type, expected', [
    ('vicuna-7b-v1.5', 'llama', 'vicuna'), ('Vicuna-13B-v1.1-AWQ', 'llama', 'vicuna'),
    ('vicuna-7b-awq', 'llama', 'vicuna'), ('vicuna-13b-delta-v0', 'llama', None),
    ('stable-vicuna-13b', 'llama', None), ('vicuna-7b-v1.5', 'falcon', None),
    ('llava-1.5', 'llava', 'vicuna'), ('llava-v1.5-7b', 'llava_llama', 'vicuna'),
    ('llava-1.5-7b-hf', 'llava', 'vicuna'),
    ('llava-v1.6-vicuna-7b', 'llava_next', None), ('llava-llama-2-13b-chat', 'llava', None),
    ('Llama-2-7b-chat-hf', 'llama', 'llama2_chat'), ('llama-2-13b-chat', 'llama', 'llama2_chat'),
    ('Llama-2-7B-Chat-AWQ', 'llama', 'llama2_chat'), ('llama2-7b-chat', 'llama', 'llama2_chat'),
    ('Llama-2-7b-hf', 'llama', None), ('llama2_7b_chat_uncensored', 'llama', None),
    ('CodeLlama-7b-Instruct-hf', 'llama', 'llama2_chat'), ('CodeLlama-7b-hf', 'llama', None),
    ('CodeLlama-70b-Instruct-hf', 'llama', None), ('TinyLlama-1.1B-Chat-v1.0', 'llama', None),
    ('my-chat', 'llama', None), ('falcon-7b-instruct', 'falcon', 'falcon_instruct'),
    ('falcon-7b-instruct', 'RefinedWebModel', 'falcon_instruct'), ('falcon-7b', 'falcon', None),
    ('falcon-40b-instruct', 'RefinedWeb', 'falcon_instruct'), ('mpt-7b-chat', 'mpt', None),
    ('Falcon3-7B-Instruct', 'llama', None), ('falcon-180B-chat', 'falcon', None)])
def test_the_name_of_a_folder_tells_the_fine_tune(folder, model_type, expected):
    assert _found(folder, model_type) == expected
    assert _found('model', model_type, f'someone/{folder}') == expected
    assert _found('model', model_type, text_config={
        '_name_or_path': f'someone/{folder}'}) == expected


@pytest.mark.parametrize('model_type, tokens, expected', [
    ('mpt', _CHATML, 'mpt_chat'), ('mpt', _CHATML[:1], None), ('mpt', (), None),
    ('llama', _CHATML, None)])
def test_the_tokens_of_chatml_tell_an_mpt_that_chats(model_type, tokens, expected):
    assert _found('any', model_type, tokens={'<|endoftext|>', *tokens}) == expected


def test_the_folder_counts_before_what_the_model_was_made_from():
    assert _found('vicuna-7b', 'llama', 'meta-llama/Llama-2-7b-chat-hf') == 'vicuna'


@pytest.mark.parametrize('config', [
    {}, {'model_type': ['llama']}, {'model_type': 'llama', '_name_or_path': 7},
    {'model_type': 'llama', '_name_or_path': '', 'text_config': 'vicuna-7b'}])
def test_a_config_that_says_nothing_gets_nothing(config):
    assert find_fallback('any', config, ()) is None


def test_an_old_checkpoint_chats_as_its_name_says_and_the_log_tells(tmp_path, caplog):
    folder = write_chat_model(tmp_path / 'vicuna-7b')
    (folder / 'tokenizer_config.json').write_text('{}')
    with caplog.at_level(logging.INFO):
        engine = Engine.load(folder, device='cpu')
    assert 'vicuna-7b has no chat template: it is taken for one that talks as vicuna' \
        in caplog.text
    ids = engine._chat_ids([Message('system', 'S'), Message('user', 'a')])
    assert engine.tokenizer.decode(ids) == 'S USER: a ASSISTANT:'
    assert ids[0] == 256 + SPECIAL_TOKENS.index('<s>')
    assert engine._stop_ids == {256 + SPECIAL_TOKENS.index('</s>')}


@pytest.mark.parametrize('name', ['chat_template', 'chat_template.jinja'])
def test_a_template_of_the_user_or_the_checkpoint_comes_first(name, tmp_path, caplog):
    folder = write_chat_model(tmp_path / 'vicuna-7b')
    (folder / 'tokenizer_config.json').write_text('{}')
    (folder / name).write_text('{{ messages[0].content }}!')
    options = {name: str(folder / name)} if name == 'chat_template' else {}
    with caplog.at_level(logging.INFO):
        engine = Engine.load(folder, device='cpu', **options)
    assert engine.tokenizer.decode(engine._chat_ids([Message('user', 'a')])) == 'a!'
    assert 'talks as' not in caplog.text


def test_the_next_question_that_a_falcon_makes_up_ends_its_answer(tmp_path, monkeypatch):
    """The engine does not say whose fall-back it is: here, a model of Llama has Falcon's."""
    falcon = next(fallback for fallback in FALLBACKS if fallback.name == 'falcon_instruct')
    monkeypatch.setattr('tinychat_ros.engine.engine.find_fallback', lambda *_: falcon)
    folder = write_chat_model(tmp_path)
    (folder / 'tokenizer_config.json').write_text('{}')
    engine = Engine.load(folder, device='cpu')
    script = engine.tokenizer.encode('Yes.\nUser: And?', special=False)

    def speak(tokens):
        said = len(tokens) - speak.prompt
        return script[said] if said < len(script) else script[-1]

    def ask(**fields):
        request = Request('So?', max_new_tokens=len(script), **fields)
        prompt = engine._prompt(engine._conversations.begin(''), request)
        speak.prompt = len(prompt.ids)
        engine._runner = FakeRunner(speak, engine.info.vocab_size)
        return list(engine.generate(request))[-1].result

    assert (ask().text, ask().finish_reason) == ('Yes.', FinishReason.STOP)
    assert ask(stop=('s',)).text == 'Ye'
    assert ask(raw=True).text == 'Yes.\nUser: And?'
