"""The two chat formats, as data: their markers and their jinja2 templates.

A template string is what goes into `chat_template` of a Hugging Face tokenizer_config.json: it
reads `messages` and `add_generation_prompt`, and calls `raise_exception`. It enforces the order
of the roles itself, because there it works without this package.

Source: LongCat-Flash-Chat's model card, section "Chat Template"; ChatML as used by Qwen and
others. Plain text only: no tools, no reasoning blocks.
"""

from dataclasses import dataclass

# What both formats demand: an optional system message, then user and assistant by turns.
# `turns` is the list without the system message, `system` its text or none.
_CHECKED = """\
{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' -%}
{%- set turns = messages[1:] if messages and messages[0]['role'] == 'system' else messages -%}
{%- if not turns -%}
{{- raise_exception('Expected at least one user message.') -}}
{%- endif -%}
{%- for message in turns -%}
{%- set expected = 'user' if loop.index0 % 2 == 0 else 'assistant' -%}
{%- if message['role'] != expected -%}
{{- raise_exception('Expected a message of role ' ~ expected ~ ' at turn ' ~ loop.index0
    ~ ', got ' ~ message['role'] ~ '. An optional system message comes first, then user and '
    ~ 'assistant by turns.') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and turns[-1]['role'] != 'user' -%}
{{- raise_exception('A reply is asked for, but the last message is not from the user.') -}}
{%- endif -%}
"""

_LONGCAT = """\
{%- if system is defined and system is not none -%}
{{- 'SYSTEM:' ~ system ~ ' ' -}}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- '' if loop.first else ' ' -}}
{{- '[Round ' ~ (loop.index0 // 2) ~ '] USER:' ~ message['content'] -}}
{%- else -%}
{{- ' ASSISTANT:' ~ message['content'] ~ '</longcat_s>' -}}
{%- endif -%}
{%- endfor -%}
{{- ' ASSISTANT:' if add_generation_prompt else '' -}}
"""

_CHATML = """\
{%- if system is defined and system is not none -%}
{{- '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in turns -%}
{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One chat format.

    name      how `render` and `parse` call it
    jinja     the template source, usable as a Hugging Face `chat_template`
    end       what ends a reply; a model's end-of-sequence token in this format
    reserved  strings that no message may contain, because a tokenizer turns them into control
              tokens: a user could otherwise forge the end of a turn
    """

    name: str
    jinja: str
    end: str
    reserved: tuple[str, ...]


LONGCAT = Template(
    name="longcat",
    jinja=_CHECKED + _LONGCAT,
    end="</longcat_s>",
    reserved=("</longcat_s>", "<longcat_s>"),
)
CHATML = Template(
    name="chatml",
    jinja=_CHECKED + _CHATML,
    end="<|im_end|>",
    reserved=("<|im_start|>", "<|im_end|>"),
)
TEMPLATES = {template.name: template for template in (LONGCAT, CHATML)}


def template_named(name: str) -> Template:
    """The template of that name; ValueError names the known ones."""
    if name not in TEMPLATES:
        raise ValueError(f"chat: unknown template {name!r}; known are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
