"""The two chat formats, as data: their markers and their jinja2 templates.

A template string is what goes into `chat_template.jinja` beside a Hugging Face tokenizer: it reads
`messages`, `tools` and `add_generation_prompt`, and calls `raise_exception`. It enforces the order
of the roles itself, because there it works without this package. `{% generation %}` encloses what
the assistant produced, the end of its reply included: transformers and trl read it as the mask of
the loss, and so does `render_spans`.

Source: LongCat-Flash-Chat's model card, section "Chat Template" (rounds, tools, calls); ChatML with
tools as used by Qwen and others. The card does not say how a tool's result goes back: the tag
`<longcat_tool_response>` is that of later LongCat models, its place here is this project's choice.
Reasoning blocks are not covered.
"""

from dataclasses import dataclass

# What both formats demand: an optional system message, then user and assistant by turns; tool
# results follow the calls that they answer. `turns` is the list without the system message,
# `system` its text or none.
_CHECKED = """\
{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' -%}
{%- set turns = messages[1:] if messages and messages[0]['role'] == 'system' else messages -%}
{%- if not turns -%}
{{- raise_exception('Expected at least one user message.') -}}
{%- endif -%}
{%- set next = namespace(roles=['user'], round=0) -%}
{%- for message in turns -%}
{%- if message['role'] not in next.roles -%}
{{- raise_exception('Expected a message of role ' ~ next.roles | join(' or ') ~ ' at turn '
    ~ loop.index0 ~ ', got ' ~ message['role'] ~ '. An optional system message comes first, then '
    ~ 'user and assistant by turns; tool results follow the calls that they answer.') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}{%- set next.roles = ['assistant'] -%}
{%- elif message['role'] == 'tool' -%}{%- set next.roles = ['tool', 'assistant'] -%}
{%- else -%}{%- set next.roles = ['tool'] if message['tool_calls'] else ['user'] -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and 'assistant' not in next.roles -%}
{{- raise_exception('A reply is asked for, but the last message is not from the user '
    ~ 'or a tool.') -}}
{%- endif -%}
"""

# One call as both formats write it, between their own tags. Arguments in the form of the OpenAI
# API are a JSON text, which goes in as it is; those of transformers are an object.
_CALL = """\
{{- '{"name": ' ~ (call['function']['name'] | tojson) ~ ', "arguments": ' -}}
{{- call['function']['arguments'] if call['function']['arguments'] is string
    else call['function']['arguments'] | tojson -}}
{{- '}' -}}
"""

_LONGCAT_TOOLS = """\
{%- if tools -%}
{{- '## Tools\\nYou have access to the following tools: \\n\\n'
    ~ '### Tool namespace: function\\n\\n' -}}
{%- for tool in tools -%}
{{- '#### Tool name: ' ~ tool['function']['name'] ~ '\\n\\nDescription: '
    ~ (tool['function']['description'] or '') ~ '\\n\\nInputSchema: \\n'
    ~ ((tool['function']['parameters'] or {}) | tojson(indent=2)) ~ '\\n\\n' -}}
{%- endfor -%}
{{- '**Note**: For each function call, return a json object with function name and arguments '
    ~ 'within <longcat_tool_call></longcat_tool_call> XML tags as follows:\\n'
    ~ '<longcat_tool_call>\\n{"name": <function-name>, "arguments": <args-dict>}\\n'
    ~ '</longcat_tool_call>\\nWhen multiple functions need to be called simultaneously, each '
    ~ 'function call should be wrapped in its own <longcat_tool_call> tag and placed '
    ~ 'consecutively. For example:\\n'
    ~ '<longcat_tool_call>\\n{"name": <function-name>, "arguments": <args-dict>}\\n'
    ~ '</longcat_tool_call><longcat_tool_call>\\n'
    ~ '{"name": <function-name>, "arguments": <args-dict>}\\n</longcat_tool_call>\\n\\n'
    ~ '## Messages\\n' -}}
{%- endif -%}
"""

_LONGCAT = (
    _LONGCAT_TOOLS
    + """\
{%- if system is defined and system is not none -%}
{{- 'SYSTEM:' ~ system ~ ' ' -}}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- '' if loop.first else ' ' -}}
{{- '[Round ' ~ next.round ~ '] USER:' ~ message['content'] -}}
{%- set next.round = next.round + 1 -%}
{%- elif message['role'] == 'tool' -%}
{{- ' <longcat_tool_response>' ~ message['content'] ~ '</longcat_tool_response>' -}}
{%- else -%}
{{- ' ASSISTANT:' -}}
{%- generation -%}
{{- message['content'] or '' -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<longcat_tool_call>\\n' -}}
"""
    + _CALL
    + """\
{{- '\\n</longcat_tool_call>' -}}
{%- endfor -%}
{{- '</longcat_s>' -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{{- ' ASSISTANT:' if add_generation_prompt else '' -}}
"""
)

_CHATML_TOOLS = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{{- system ~ '\\n\\n' if system is defined and system is not none else '' -}}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n'
    ~ 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}
{{- '\\n' ~ (tool | tojson) -}}
{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and '
    ~ 'arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n'
    ~ '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
{%- elif system is defined and system is not none -%}
{{- '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n' -}}
{%- endif -%}
"""

_CHATML = (
    _CHATML_TOOLS
    + """\
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- '<|im_start|>user\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}
{%- elif message['role'] == 'tool' -%}
{{- '' if loop.previtem['role'] == 'tool' else '<|im_start|>user' -}}
{{- '\\n<tool_response>\\n' ~ message['content'] ~ '\\n</tool_response>' -}}
{{- '' if not loop.last and loop.nextitem['role'] == 'tool' else '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}
{{- message['content'] or '' -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '' if loop.first and not message['content'] else '\\n' -}}
{{- '<tool_call>\\n' -}}
"""
    + _CALL
    + """\
{{- '\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
)


@dataclass(frozen=True, kw_only=True)
class Template:
    """One chat format.

    name      how `render` and `parse` call it
    jinja     the template source, usable as a Hugging Face `chat_template`
    end       what ends a reply; a model's end-of-sequence token in this format
    call      the tags around one tool call, with the newlines that belong to them
    joint     what stands between a reply's text and its first call, and between two calls
    special   the markers that a tokenizer for this format holds as one control token each
    reserved  strings that no message may contain, because a tokenizer turns them into control
              tokens: a user could otherwise forge the end of a turn
    """

    name: str
    jinja: str
    end: str
    call: tuple[str, str]
    joint: str
    special: tuple[str, ...]
    reserved: tuple[str, ...]


_LONGCAT_SPECIAL = (
    "</longcat_s>",
    "<longcat_tool_call>",
    "</longcat_tool_call>",
    "<longcat_tool_response>",
    "</longcat_tool_response>",
)
_CHATML_SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)

LONGCAT = Template(
    name="longcat",
    jinja=_CHECKED + _LONGCAT,
    end="</longcat_s>",
    call=("<longcat_tool_call>\n", "\n</longcat_tool_call>"),
    joint="",
    special=_LONGCAT_SPECIAL,
    reserved=(*_LONGCAT_SPECIAL, "<longcat_s>"),
)
CHATML = Template(
    name="chatml",
    jinja=_CHECKED + _CHATML,
    end="<|im_end|>",
    call=("<tool_call>\n", "\n</tool_call>"),
    joint="\n",
    special=_CHATML_SPECIAL,
    reserved=_CHATML_SPECIAL,
)
TEMPLATES = {template.name: template for template in (LONGCAT, CHATML)}


def template_named(name: str) -> Template:
    """The template of that name; ValueError names the known ones."""
    if name not in TEMPLATES:
        raise ValueError(f"chat: unknown template {name!r}; known are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def template_of(jinja: str) -> Template | None:
    """The template whose source this is, or None for a foreign one."""
    return next((form for form in TEMPLATES.values() if form.jinja == jinja), None)
