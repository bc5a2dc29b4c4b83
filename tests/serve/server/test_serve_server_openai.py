"""Claims about the objects that OpenAI's client makes of an answer: they go back as they are."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from longcat.chat import Template

openai = pytest.importorskip("openai")
Ask = Callable[..., Any]
ASKED: Any = [{"role": "user", "content": "Is it warm?"}]


class Weather(BaseModel):
    """Weather of a city."""

    city: Literal["Ulm", "Rome"]


def client(server: Any) -> Any:
    return openai.AsyncOpenAI(
        base_url="http://test/v1",
        api_key="none",
        http_client=server.client,
        max_retries=0,
        _strict_response_validation=True,
    )


def shapes(message: Any) -> list[Any]:
    """The three ways in which programs keep a message."""
    return [message, message.to_dict(), message.model_dump()]


async def answered(server: Any, message: Any, **fields: Any) -> None:
    """A message with calls goes back, its calls answered, and is the same prompt in all shapes."""
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "24"} for call in message.tool_calls
    ]
    prompts = []
    for shape in shapes(message):
        told = await client(server).chat.completions.create(
            model="tiny", messages=[*ASKED, shape, *results], **fields
        )
        assert told.choices[0].message.content == "hello"
        prompts.append(server.engine.requests[-1].prompt_ids)
    assert len(set(prompts)) == 1


def test_a_streamed_call_goes_back_with_and_without_its_tool(ask: Ask, template: Template) -> None:
    async def scenario(server: Any) -> None:
        opening, closing = template.call
        call = f'{opening}{{"name": "Weather", "arguments": {{"city": "Ulm"}}}}{closing}'
        server.engine.reply = call.encode()
        tools: Any = [openai.pydantic_function_tool(Weather)]
        del tools[0]["function"]["strict"]  # which needs a grammar engine
        completions = client(server).chat.completions
        async with completions.stream(model="tiny", messages=ASKED, tools=tools) as stream:
            kinds = {event.type async for event in stream}
            message = (await stream.get_final_completion()).choices[0].message
        assert "tool_calls.function.arguments.done" in kinds
        assert message.tool_calls[0].function.arguments == '{"city": "Ulm"}'
        server.engine.reply = b"hello"
        await answered(server, message, tools=tools)
        await answered(server, message)

    ask(scenario, chat=template, window=4000)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_was_parsed_out_of_a_reply_goes_back(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.service.constraints = lambda spec: None
        opening, closing = server.service.tokenizer.chat.call
        parse = client(server).chat.completions.parse
        server.engine.reply = b'{"city": "Rome"}'
        told = await parse(model="tiny", messages=ASKED, response_format=Weather)
        message = told.choices[0].message
        assert message.parsed == Weather(city="Rome")
        server.engine.reply = b"hello"
        for shape in shapes(message):
            await client(server).chat.completions.create(
                model="tiny", messages=[*ASKED, shape, *ASKED]
            )
        call = f'{opening}{{"name": "Weather", "arguments": {{"city": "Ulm"}}}}{closing}'
        server.engine.reply = call.encode()
        tools = [openai.pydantic_function_tool(Weather)]
        told = await parse(model="tiny", messages=ASKED, tools=tools, response_format=Weather)
        message = told.choices[0].message
        assert message.tool_calls[0].function.parsed_arguments == Weather(city="Ulm")
        server.engine.reply = b"hello"
        await answered(server, message, tools=tools)

    ask(scenario, window=4000)
