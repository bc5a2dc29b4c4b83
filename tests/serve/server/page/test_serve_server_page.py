"""Claims about the page at /: self-contained, usable, and alive in a browser without a screen."""

import re
from pathlib import Path
from typing import Any

from longcat.serve import Delta, EngineStats

STATS = EngineStats(
    running=3, waiting=1, pages_free=50, pages_cached=30, pages_used=20, pages_total=100, steps=9,
    prompt_tokens=40, tokens=80, drafts=2, drafted_at=(20, 10, 0), accepted_at=(15, 4, 0),
    preemptions=0, prefix_queries=40, prefix_hits=10, finished=2,
)  # fmt: skip
REPLY = b"Use `len`.\n\n```python\nlen(x) < 3\n```\n**Done** <b>here</b>: 2 * 3 * 4, *so be it*."


def test_the_page_loads_nothing_from_elsewhere_and_says_so(ask: Any) -> None:
    async def scenario(server: Any) -> Any:
        return await server.client.get("/")

    answer = ask(scenario, api_keys=("secret",))
    assert answer.status_code == 200, "the page itself needs no key"
    text = answer.text
    assert not re.search(
        r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|//\w""", text.replace("// ", "")
    )
    assert len(answer.content) < 24_000
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "innerHTML" not in text, "nothing of a reply may become markup"


def test_every_field_has_a_label_and_the_log_is_announced(ask: Any) -> None:
    async def scenario(server: Any) -> Any:
        return (await server.client.get("/")).text

    text = ask(scenario)
    fields = re.findall(r"<(?:input|textarea) id=\"(\w+)\"", text)
    labelled = re.findall(r"<label[^>]* for=\"(\w+)\"", text)
    assert sorted(fields) == sorted(labelled)
    assert 'role="log" aria-live="polite"' in text
    assert 'lang="en"' in text


def test_stats_tell_what_the_page_watches_and_need_a_key(ask: Any) -> None:
    async def scenario(server: Any) -> Any:
        closed = await server.client.get("/stats")
        key = {"Authorization": "Bearer secret"}
        before = await server.client.get("/stats", headers=key)
        server.engine.stats = STATS
        return closed, before, await server.client.get("/stats", headers=key)

    closed, before, after = ask(scenario, api_keys=("secret",))
    assert closed.status_code == 401
    assert before.json()["engine"] is None
    document = after.json()
    assert (document["model"], document["state"], document["chat"]) == ("tiny", "up", True)
    assert document["engine"]["accepted_at"] == [15, 4, 0]
    assert document["engine"]["pages_total"] == 100


def test_one_can_chat_stop_and_watch_with_the_keyboard_alone(
    browser: Any, run: Any, tmp_path: Path
) -> None:
    running = run()
    running.engine.stats, running.engine.reply = STATS, REPLY
    browser.call("Page.navigate", url=running.url)
    browser.until(
        "document.title === 'longcat' && document.getElementById('state').dataset.up === 'yes'"
    )
    assert browser.js("document.activeElement.id") == "text", "one can type at once"
    for letter in "Hi":
        browser.call("Input.dispatchKeyEvent", type="char", text=letter)
    browser.key("Enter", 13, "\r")
    browser.until("document.querySelectorAll('#talk .note').length > 0")
    talk = "document.getElementById('talk')"
    assert browser.js(f"{talk}.querySelector('.user').textContent") == "Hi"
    assert browser.js(f"{talk}.querySelector('pre code').textContent") == "len(x) < 3"
    assert browser.js(f"{talk}.querySelector('strong').textContent") == "Done"
    emphasised = f"[...{talk}.querySelectorAll('em')].map((e) => e.textContent)"
    assert browser.js(emphasised) == ["so be it"]
    assert browser.js(f"{talk}.querySelector('b')") is None, "markup of a reply stays text"
    assert "drafts accepted" in browser.js(f"{talk}.querySelector('.note').textContent")
    assert browser.js("document.getElementById('accepted').textContent") == "63 %"
    assert browser.js("document.getElementById('running').textContent") == "3"
    assert "20 pages used" in browser.js("document.getElementById('pages').textContent")
    running.engine.pause = 0.2
    browser.call("Input.dispatchKeyEvent", type="char", text="x")
    browser.key("Enter", 13, "\r")
    browser.until("messages.length === 3")
    browser.until(f"{talk}.lastElementChild.textContent !== ''")
    browser.key("Escape", 27)
    browser.until(f"{talk}.lastElementChild.textContent === 'stopped'")
    browser.until("!document.getElementById('send').disabled")
    assert [m["role"] for m in browser.js("messages")] == ["user", "assistant"] * 2
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_new_conversation_knows_nothing_of_a_reply_that_was_under_way(
    browser: Any, run: Any
) -> None:
    running = run()
    running.engine.stats, running.engine.reply, running.engine.pause = STATS, REPLY, 0.2
    browser.open(running.url)
    for reply in ("=", "!"):  # before the first piece of the reply, and after it
        browser.ask("x")
        browser.until(f"asking && $('talk').lastElementChild.textContent {reply}== ''")
        browser.js("document.getElementById('fresh').click(); 0")
        browser.until("asking === null")
        left = "[messages.length, $('talk').childElementCount, $('text').value]"
        assert browser.js(left) == [0, 0, ""]


def test_a_server_that_is_gone_is_named_and_what_it_said_of_keys_opens_no_settings(
    browser: Any, run: Any
) -> None:
    running = run()
    ill = Delta(request_id="x", finish_reason="error", error="a keyword is ill")
    running.engine.stats, running.engine.error = STATS, ill
    browser.open(running.url)
    note = "document.querySelector('#talk .error').textContent"
    browser.ask("x")
    browser.until(f"{note} === 'a keyword is ill'")
    assert not browser.js("document.getElementById('settings').open")
    running.stop()
    browser.js("document.getElementById('fresh').click(); 0")
    browser.ask("x")
    browser.until(f"{note} === 'the server does not answer'")


def test_a_model_without_a_chat_format_continues_text_and_a_missing_key_is_asked_for(
    browser: Any, run: Any
) -> None:
    running = run(chat=None, api_keys=("secret",))
    running.engine.stats, running.engine.reply = STATS, b" and on"
    browser.call("Page.navigate", url=running.url)
    browser.until("document.getElementById('state').textContent.includes('a key is needed')")
    browser.js("document.getElementById('key').value = 'secret'; 0")
    browser.until("document.getElementById('text').placeholder === 'Text to continue'")
    browser.ask("on")
    browser.until("messages.length === 2")
    assert browser.js("messages[1].content") == " and on"
    assert running.engine.requests[-1].prompt_ids[1:] == tuple(b"on")
    window = browser.js("info.max_model_len")
    fits = min(200, window - len(running.engine.requests[-1].prompt_ids))
    assert running.engine.requests[-1].params.max_tokens == fits, "16 is a client's default"
    browser.js("document.getElementById('max_tokens').value = '7'; 0")
    browser.ask("on")
    browser.until("messages.length === 4")
    assert running.engine.requests[-1].params.max_tokens == 7
    running.engine.error = Delta(request_id="x", finish_reason="error", error="it is ill")
    browser.ask("and so")
    browser.until("document.querySelector('#talk .error').textContent === 'it is ill'")
    assert browser.js("messages.length") == 4
    assert browser.js("document.getElementById('text').value") == "and so", "to be sent again"


def test_a_reply_that_comes_fast_is_drawn_some_times_a_second_and_whole(
    browser: Any, run: Any
) -> None:
    running = run(window=4000)
    running.engine.stats, running.engine.reply = STATS, b"**so** " * 300
    browser.open(running.url)
    browser.js(
        "let drawn = 0; const drawing = show; show = (...all) => { drawn++; drawing(...all); }; 0"
    )
    browser.ask("x")
    browser.until("messages.length === 2")
    assert browser.js("document.querySelectorAll('#talk strong').length") == 300
    assert 0 < browser.js("drawn") < 500, "a piece is two bytes here, of 2,100"
