"""Claims about the chat formats: the published strings, strict order, and a faithful way back."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longcat.chat import CHATML, LONGCAT, TEMPLATES, Message, parse, parse_reply, render

SYSTEM = cast(Message, {"role": "system", "content": "Be brief."})


def dialogue(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [cast(Message, {"role": roles[i % 2], "content": t}) for i, t in enumerate(texts)]


def test_longcat_first_turn_is_the_published_string() -> None:
    assert render(dialogue("Paris is...")) == "[Round 0] USER:Paris is... ASSISTANT:"
    assert render([SYSTEM, *dialogue("Hi")]) == "SYSTEM:Be brief. [Round 0] USER:Hi ASSISTANT:"


def test_longcat_later_turns_count_rounds_and_end_replies() -> None:
    assert render([SYSTEM, *dialogue("a", "b", "c", "d", "e")]) == (
        "SYSTEM:Be brief. [Round 0] USER:a ASSISTANT:b</longcat_s> [Round 1] USER:c ASSISTANT:d"
        "</longcat_s> [Round 2] USER:e ASSISTANT:"
    )


def test_chatml_is_the_published_string() -> None:
    assert render([SYSTEM, *dialogue("a", "b", "c")], "chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_a_generation_prompt_the_text_ends_with_the_last_message() -> None:
    assert render(dialogue("a", "b"), add_generation_prompt=False) == (
        "[Round 0] USER:a ASSISTANT:b</longcat_s>"
    )
    assert render(dialogue("a"), "chatml", add_generation_prompt=False) == (
        "<|im_start|>user\na<|im_end|>\n"
    )


# Text that imitates the formats' own words as well as any other.
TEXT = st.lists(
    st.sampled_from(["a", " ", "\n", "é", "{{", "[Round", " [Round 1] USER:", " ASSISTANT:",
                     "SYSTEM:", "USER:", "assistant\n", "1]", "<", "|im_end|"]),
    max_size=5,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("template", list(TEMPLATES))
@given(system=st.none() | TEXT, texts=st.lists(TEXT, min_size=1, max_size=5), asked=st.booleans())
def test_parse_gives_back_the_messages_or_refuses_but_never_others(
    template: str, system: str | None, texts: list[str], asked: bool
) -> None:
    messages = dialogue(*texts)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    asked = asked and len(texts) % 2 == 1
    text = render(messages, template, add_generation_prompt=asked)
    words = "".join([system or "", *texts])
    try:
        assert parse(text, template) == messages
    except ValueError:
        # ChatML marks every text off, so it is never ambiguous; LongCat's format is, but only
        # where a message imitates a marker.
        assert template == "longcat"
        assert "ASSISTANT:" in words or "USER:" in words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[Round 0] USER:a ASSISTANT:b",  # a reply that never ended
        "[Round 1] USER:a ASSISTANT:",
        "[Round 0] USER:a ASSISTANT:b</longcat_s> [Round 2] USER:c ASSISTANT:",
        "[Round 0] USER:a</longcat_s>",
        "SYSTEM:x",
        "HELLO:x [Round 0] USER:a ASSISTANT:",
        "[Round 0] USER:a ASSISTANT:b ASSISTANT:c</longcat_s>",
    ],
)
def test_what_render_does_not_make_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a conversation in the longcat format"):
        parse(text)


def test_a_reply_is_cut_at_its_end_and_known_to_be_cut_off_without_one() -> None:
    finished = parse_reply("Hi there!</longcat_s> [Round 1] USER:")
    assert (finished.text, finished.finished) == ("Hi there!", True)
    cut_off = parse_reply("Hi the")
    assert (cut_off.text, cut_off.finished) == ("Hi the", False)
    assert parse_reply("x<|im_end|>\n", "chatml").text == "x"


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_a_reply_goes_back_into_the_conversation_it_answers(template: str) -> None:
    asked = dialogue("hello")
    generated = " Hi!\n" + TEMPLATES[template].end
    answered = [*asked, *dialogue("", parse_reply(generated, template).text)[1:]]
    whole = render(answered, template, add_generation_prompt=False)
    assert whole.startswith(render(asked, template) + " Hi!\n" + TEMPLATES[template].end)
    assert parse(whole, template) == answered


BAD = [
    ([], "at least one user message"),
    ([SYSTEM], "at least one user message"),
    (dialogue("a", "b"), "last message is not from the user"),
    ([*dialogue("a"), *dialogue("b")], "Expected a message of role assistant at turn 1, got user"),
    ([*dialogue("", "a")[1:]], "Expected a message of role user at turn 0, got assistant"),
    ([*dialogue("a", "b"), SYSTEM], "message 2 is a system message; only the first"),
    ([{"role": "robot", "content": "x"}], "role 'robot'; known are system, user, assistant and"),
    ([{"role": "user", "content": None}], "must have text as its content, got NoneType"),
    ([{"role": "user"}], r"exactly the keys role and content, got \['role'\]"),
    ([{"role": "user", "content": "", "tool_calls": []}], "exactly the keys role and content"),
    (["hello"], "got str"),
]


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize(("messages", "sentence"), BAD)
def test_messages_out_of_form_are_refused_in_one_sentence(
    template: str, messages: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        render(messages, template)


@pytest.mark.parametrize(
    ("template", "text"), [("longcat", "a</longcat_s>b"), ("chatml", "<|im_end|>\n<|im_start|>")]
)
def test_a_message_cannot_forge_the_end_of_its_turn(template: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"which the .* format keeps for itself"):
        render(dialogue(text), template)


def test_an_unknown_template_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown template 'llama'; known are longcat, chatml"):
        render(dialogue("a"), "llama")


def test_message_text_is_never_run_as_a_template() -> None:
    assert "{{ 7 * 7 }}" in render(dialogue("{{ 7 * 7 }}"))


@pytest.mark.parametrize("form", [LONGCAT, CHATML], ids=lambda form: form.name)
def test_hugging_face_renders_the_template_to_the_same_text(form: Any) -> None:
    """The string works as a `chat_template` where this package is not installed."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [SYSTEM, *dialogue("a", "b", "c")]
    rendered, _ = utils.render_jinja_template(
        [messages], chat_template=form.jinja, add_generation_prompt=True
    )
    assert rendered == [render(messages, form.name)]
    with pytest.raises(Exception, match="Expected a message of role user"):
        utils.render_jinja_template([messages[2:]], chat_template=form.jinja)
