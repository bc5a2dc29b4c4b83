"""Chat formats: messages to text and back, for LongCat's format and ChatML.

    from longcat.chat import render, parse_reply

    prompt = render([{"role": "user", "content": "hello"}])   # "[Round 0] USER:hello ASSISTANT:"
    reply = parse_reply("Hi!</longcat_s>")                    # Reply(text="Hi!", finished=True)

    parser = ReplyParser()                                    # the same while it is generated
    parser.feed("Hi!</longc")                                 # [TextDelta(text="Hi!")]

`render_spans` says which characters the assistant produced: what a model learns in fine-tuning.
`LONGCAT.jinja` and `CHATML.jinja` are the same formats as Hugging Face chat templates.
"""

from longcat.chat.messages import Message, Tool, ToolCall
from longcat.chat.openai import from_tool_calls, new_call_id, to_tool_call_delta, to_tool_calls
from longcat.chat.parse import Call, Reply, parse, parse_reply
from longcat.chat.render import Rendered, render, render_spans
from longcat.chat.stream import CallDelta, Delta, ReplyParser, TextDelta
from longcat.chat.templates import CHATML, LONGCAT, TEMPLATES, Template, template_named, template_of

__all__ = [
    "CHATML",
    "LONGCAT",
    "TEMPLATES",
    "Call",
    "CallDelta",
    "Delta",
    "Message",
    "Rendered",
    "Reply",
    "ReplyParser",
    "Template",
    "TextDelta",
    "Tool",
    "ToolCall",
    "from_tool_calls",
    "new_call_id",
    "parse",
    "parse_reply",
    "render",
    "render_spans",
    "template_named",
    "template_of",
    "to_tool_call_delta",
    "to_tool_calls",
]
