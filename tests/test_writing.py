"""Writing a corpus: against a real server that misbehaves, cut off, and at once."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.cli import main
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.extract import extract
from emoreg.writing import checks
from emoreg.writing.checks import REASONS, Seen, drafts, messages_in
from emoreg.writing.corpus_files import write_corpus
from emoreg.writing.endpoint import RETRIES, SILENT, EndpointWriter
from emoreg.writing.journal import NAME, Journal
from emoreg.writing.judging import ATTEMPTS, judge
from emoreg.writing.local import LocalWriter, _asked, _OwnDraws, alike
from emoreg.writing.plan import KINDS, Request, plan
from emoreg.writing.prompts import SCENARIO, SEPARATOR, messages_for
from emoreg.writing.write import stories
from emoreg.writing.writer import Prompt

Build = Callable[[str], PreTrainedModel]
EMOTIONS = ("calm", "sad", "proud")


# ------------------------------------------------------------------ a server


def told(prompt: str, count: int = 70) -> str:
    """Return a text of its own for every prompt, of words that name nothing."""
    draw = torch.Generator().manual_seed(hash_of(prompt))
    numbers = torch.randint(0, 9000, (count,), generator=draw).tolist()
    return " ".join(f"w{number}" for number in numbers) + "."


def hash_of(text: str) -> int:
    """Return the same number in every process, which `hash` does not."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def answer_to(prompt: str) -> str:
    """Write what was asked for: as many texts, or a dialogue."""
    if "Begin each turn" in prompt:
        parts = [told(f"{prompt}{i}", 14) for i in range(4)]
        names = ("User", "Assistant") * 2
        turns = zip(names, parts, strict=True)
        before = f"**Scenario:** {told(prompt, 14)}\n\n" if SCENARIO in prompt else ""
        return before + "\n\n".join(f"{name}: {said}" for name, said in turns)
    many = 3 if "Write 3 short scenes" in prompt else 1
    return f"\n{SEPARATOR}\n".join(told(f"{prompt}{i}") for i in range(many))


class Server(ThreadingHTTPServer):
    """Answers chat completions; `moods` says how it takes the next requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.moods: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()
        self.times: list[float] = []
        self.pause = 0.0
        self.released = threading.Event()
        self.headers: dict[str, str] = {}
        self.wrap: Callable[[str], str] = lambda text: text
        self.mood_of: Callable[[str], str] = lambda _: "well"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(length))
        prompt = request["messages"][0]["content"]
        with self.server.lock:
            moods = self.server.moods
            mood = moods.pop(0) if moods else self.server.mood_of(prompt)
            self.server.asked.append(request)
            self.server.keys.append(str(self.headers.get("Authorization")))
            self.server.times.append(time.monotonic())
        time.sleep(self.server.pause)
        if mood == "stall":
            self.server.released.wait(100)
        if mood == "hang up":
            self.close_connection = True
            return
        if mood == "tells the key":
            self._send(401, f"wrong: {self.headers.get('Authorization')}".encode())
            return
        if mood.isdigit():
            self._send(int(mood), b'{"error": {"message": "told to"}}')
            return
        if mood == "filter":
            self._send(400, b'{"error": {"code": "content_filter"}}')
            return
        text = self.server.wrap(answer_to(prompt))
        silent = {"thinks": "length", "filtered": "content_filter"}
        body = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": silent.get(mood, "stop"),
                        "message": {
                            "role": "assistant",
                            "content": None if mood in silent else text,
                        },
                    }
                ],
            }
        ).encode()
        if mood == "nonsense":
            body = b"<html>not what you asked for</html>"
        if mood == "empty":
            body = b'{"id": "x", "object": "chat.completion", "choices": []}'
        if mood == "half":
            body = body[: len(body) // 2]
        self._send(200, body)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status != 200:
            for name, value in self.server.headers.items():
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.released.set()
    made.shutdown()
    made.server_close()


def writer(server: Server, **how: Any) -> EndpointWriter:
    return EndpointWriter(server.url, "some-model", **{"pause": 0.01, **how})


def files(folder: Path) -> dict[str, bytes]:
    """Return the corpus's files; the journal is in the order in which answers came."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.json*"))
    }


# ------------------------------------------------------------- a whole corpus


def test_a_written_corpus_is_read_and_fitted_on(
    server: Server,
    tmp_path: Path,
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    written = stories(
        writer(server), tmp_path, emotions=EMOTIONS, kinds=KINDS, quiet=True
    )
    assert written.taken == written.wanted
    assert written.taken["stories"] == 36
    assert (written.rejected, written.given_up, written.lacking) == ({}, (), "")
    corpus = Corpus(tmp_path)
    assert corpus.emotions() == EMOTIONS
    assert len(corpus.stories(split="fit")) == 24
    assert len(corpus.neutral("all")) == 160
    assert len(corpus.records("dialogues", split="test")) == 3 * 2
    assert len(corpus.records("masked", split="fit")) == 3 * 3
    assert len(corpus.records("masked", split="test")) == 3
    dialogues = corpus.records("masked_dialogues", split="all")
    assert [row["split"] for row in dialogues] == ["fit", "fit", "fit", "test"] * 3
    assert {row["speaker"] for row in dialogues} == {"user", "assistant"}
    for row in dialogues:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["system", *("user", "assistant") * 2]
        assert not row["messages"][0]["content"].startswith(("Scenario", "*"))
    speakers = {row["speaker"] for row in corpus.records("dialogues", split="fit")}
    assert speakers == {"user", "assistant"}
    packaged = Corpus.packaged().stories(EMOTIONS, split="all")
    person = {story.topic: story.perspective for story in packaged}
    assert {s.topic: s.perspective for s in corpus.stories(split="all")} == person
    found = extract(tiny_model("llama"), tokenizer, corpus, quiet=True)
    assert found.vectors.emotions == EMOTIONS
    assert found.vectors.audit is not None
    assert "lda-dialogues" in found.vectors.audit.names


def test_how_many_ask_at_once_makes_no_difference(
    server: Server, tmp_path: Path
) -> None:
    server.pause = 0.002
    for many in (1, 8):
        stories(
            writer(server, concurrency=many),
            tmp_path / str(many),
            emotions=EMOTIONS,
            kinds=("stories", "dialogues"),
            per_topic=3,
            quiet=True,
        )
    assert files(tmp_path / "1") == files(tmp_path / "8")
    one, eight = ((tmp_path / n / NAME).read_bytes() for n in ("1", "8"))
    assert sorted(one.splitlines()) == sorted(eight.splitlines())
    assert len(Corpus(tmp_path / "1").stories(split="all")) == 108


PROGRAM = """
import sys
from emoreg.writing.endpoint import EndpointWriter
from emoreg.writing.write import stories
writer = EndpointWriter(sys.argv[1], "some-model", concurrency=3, pause=0.01)
stories(writer, sys.argv[2], emotions=("calm", "sad", "proud"), quiet=True)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same(
    server: Server, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    stories(writer(server), whole, emotions=EMOTIONS, quiet=True)
    many, server.pause = len(server.asked), 0.05
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.url, str(cut)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    while len(server.asked) < many + 30:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = (cut / NAME).read_bytes()
    assert 0 < kept.count(b"\n") - 1 < many
    (cut / NAME).write_bytes(kept + b'{"key": "story/calm')  # a line that was cut
    server.pause, before = 0.0, len(server.asked)
    stories(writer(server), cut, emotions=EMOTIONS, quiet=True)
    assert files(cut) == files(whole)
    # What was kept is not asked for again.
    assert len(server.asked) - before == many - (kept.count(b"\n") - 1)


def test_other_settings_do_not_go_on(server: Server, tmp_path: Path) -> None:
    how: dict[str, Any] = {"kinds": ("stories",), "quiet": True}
    stories(writer(server), tmp_path, emotions=("calm",), **how)
    asked = len(server.asked)
    with pytest.raises(ValueError, match=r"`emotions` was .'calm'., is .'sad'."):
        stories(writer(server), tmp_path, emotions=("sad",), **how)
    with pytest.raises(ValueError, match=r"`temperature` was 0\.9, is 0\.5"):
        stories(writer(server, temperature=0.5), tmp_path, emotions=("calm",), **how)
    stories(writer(server), tmp_path, emotions=("calm",), **how)  # control
    assert len(server.asked) == asked  # all was there


def test_a_corpus_from_elsewhere_is_not_overwritten(
    server: Server, tmp_path: Path
) -> None:
    written = [f"{kind}.jsonl" for kind in KINDS if kind != "stories"]
    for name in ("emotions.json", *written):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ValueError, match=f"found `{name}` and no {NAME}"):
            stories(writer(server), folder, emotions=("calm",), quiet=True)
        assert (folder / name).read_text() == "mine"
    assert server.asked == []
    own = tmp_path / "own"
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    stories(writer(server), own, **how)
    (own / "neutral.jsonl").write_text("mine, put beside the stories")
    stories(writer(server), own, **how)
    assert (own / "neutral.jsonl").read_text() == "mine, put beside the stories"


def test_a_broken_line_is_named(server: Server, tmp_path: Path) -> None:
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    stories(writer(server), tmp_path, **how)
    before, lines = files(tmp_path), (tmp_path / NAME).read_bytes().splitlines(True)
    for wrong in (lines[3][:20] + b"\n", b"\0\0\0\n", b"[]\n", b'{"key": "x"}\n'):
        (tmp_path / NAME).write_bytes(b"".join([*lines[:3], wrong, *lines[4:]]))
        with pytest.raises(ValueError, match=rf"{NAME}:4: .*Delete the line"):
            stories(writer(server), tmp_path, **how)
    (tmp_path / NAME).write_bytes(b"".join([*lines[:3], *lines[4:]]))
    asked = len(server.asked)
    stories(writer(server), tmp_path, **how)
    assert len(server.asked) == asked + 1
    assert files(tmp_path) == before
    (tmp_path / NAME).write_bytes(b"".join([b"?\n", *lines[1:]]))
    with pytest.raises(ValueError, match=rf"{NAME}:1: .*another folder"):
        stories(writer(server), tmp_path, **how)


def test_dialogues_of_one_split_are_left_out(tmp_path: Path) -> None:
    requests = plan(("sad", "calm"), ("stories", "dialogues"), 1)
    taken: dict[str, Sequence[str]] = {
        r.key: [answer_to(messages_for(r)[0]["content"])] for r in requests
    }
    write_corpus(tmp_path, requests, taken)
    assert len(Corpus(tmp_path).records("dialogues", split="test")) == 4  # control
    for request in requests:
        if request.kind == "dialogues" and request.split == "test":
            taken[request.key] = []
    write_corpus(tmp_path, requests, taken)
    assert not (tmp_path / "dialogues.jsonl").exists()
    for request in requests:
        if request.emotion == "sad":
            taken[request.key] = []
    write_corpus(tmp_path, requests, taken)
    corpus = Corpus(tmp_path)  # a story file without a name would be refused
    assert {story.emotion for story in corpus.stories(split="all")} == {"calm"}


# ------------------------------------------------------------- misbehaviour


@pytest.mark.parametrize(
    "mood", ["500", "503", "429", "408", "nonsense", "empty", "half", "hang up"]
)
def test_what_may_pass_is_tried_again(
    server: Server, tmp_path: Path, mood: str
) -> None:
    server.moods = [mood, mood]
    found = stories(
        writer(server, concurrency=1),
        tmp_path,
        emotions=("calm",),
        kinds=("stories",),
        quiet=True,
    )
    assert found.taken == {"stories": 12}
    assert len(server.asked) == 12 + 2


def test_an_answer_that_does_not_come_is_asked_for_again(
    server: Server, tmp_path: Path
) -> None:
    server.moods = ["stall"]
    slow = writer(server, timeout=0.5)
    found = stories(slow, tmp_path, emotions=("calm",), kinds=("stories",), quiet=True)
    assert found.taken == {"stories": 12}


@pytest.mark.parametrize("mood", ["500", "nonsense"])
def test_what_does_not_pass_stops_and_keeps_what_there_is(
    server: Server, tmp_path: Path, mood: str
) -> None:
    server.moods = ["well"] * 5 + [mood] * 200
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    with pytest.raises(ConnectionError, match=f"{RETRIES + 1} tries.*give the same"):
        stories(writer(server, concurrency=1), tmp_path, **how)
    assert len(Corpus(tmp_path).stories(split="all")) == 5
    server.moods, before = [], len(server.asked)
    assert stories(writer(server), tmp_path, **how).taken == {"stories": 12}
    assert len(server.asked) - before == 7


@pytest.mark.parametrize("mood", ["401", "404", "400"])
def test_what_will_not_pass_is_not_tried_again(
    server: Server, tmp_path: Path, mood: str
) -> None:
    # Not at the first request, nor later: it may say that a prompt is too long.
    for many in (1, 4):
        server.moods, server.asked = ["well"] * (many - 1) + [mood], []
        asked = writer(server, concurrency=1)
        with pytest.raises(ConnectionError, match=f"status {mood}: .*told to"):
            stories(asked, tmp_path / str(many), emotions=("calm",), quiet=True)
        assert len(server.asked) == many


@pytest.mark.parametrize("mood", ["empty", "thinks", "filter", "filtered"])
def test_a_prompt_without_a_text_does_not_keep_others_from_theirs(
    server: Server, tmp_path: Path, mood: str
) -> None:
    """It is the very first one, and later the only one that is left."""
    server.mood_of = lambda prompt: mood if "message arrives" in prompt else "well"
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    found = stories(writer(server, concurrency=1, pause=0.001), tmp_path, **how)
    assert found.taken == {"stories": 11}
    assert found.rejected == {checks.EMPTY: ATTEMPTS}
    assert found.given_up == ("story/calm/t01",)
    tries = 1 if mood.startswith("filter") else RETRIES + 1
    assert len(server.asked) == 11 + ATTEMPTS * tries
    whole, lines = files(tmp_path), (tmp_path / NAME).read_bytes().splitlines(True)
    (tmp_path / NAME).write_bytes(b"".join(lines[:-1]))
    again = stories(writer(server, concurrency=1, pause=0.001), tmp_path, **how)
    assert again.given_up == found.given_up
    assert files(tmp_path) == whole


def test_where_no_prompt_has_a_text_that_is_said(
    server: Server, tmp_path: Path
) -> None:
    server.mood_of = lambda _: "empty"
    asked = writer(server, concurrency=1, pause=0.001)
    with pytest.raises(ConnectionError, match="an answer without text"):
        stories(asked, tmp_path, emotions=("calm",), kinds=("stories",), quiet=True)
    assert len(server.asked) >= SILENT * (RETRIES + 1)
    assert (tmp_path / NAME).read_bytes().count(b"\n") == 1  # nothing counts as said


def test_half_a_character_is_written_as_one_that_is_lacking(
    server: Server, tmp_path: Path
) -> None:
    server.wrap = lambda text: f"\ud83d \U0001f600 {text}"
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    assert stories(writer(server), tmp_path, **how).taken == {"stories": 12}
    story = Corpus(tmp_path).stories(split="all")[0]
    assert story.text.startswith("\ufffd \U0001f600 w")


def test_no_server_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emoreg.writing.endpoint.LONGEST_PAUSE", 0.01)
    status = main(
        [
            *("stories", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"),
            *("--emotions", "calm", "--out", str(tmp_path), "--quiet"),
        ]
    )
    assert status == 2
    said = capsys.readouterr().err
    assert said.startswith("emoreg: the endpoint must answer, 6 tries")
    assert "onnect" in said
    assert said.count("\n") == 1


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-4711")
    stories(
        writer(server, key_variable="MY_KEY"),
        tmp_path,
        emotions=("calm",),
        kinds=("stories",),
        quiet=True,
    )
    assert set(server.keys) == {"Bearer secret-4711"}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret-4711" not in path.read_bytes()


def test_the_key_is_in_no_complaint(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.moods = ["tells the key"]
    monkeypatch.setenv("MY_KEY", "secret-4711\n")  # as a file's last line leaves it
    with pytest.raises(
        ConnectionError, match=r"401: wrong: Bearer \(the key\)"
    ) as said:
        stories(
            writer(server, key_variable="MY_KEY"),
            tmp_path,
            emotions=("calm",),
            quiet=True,
        )
    assert "secret-4711" not in "".join(traceback.format_exception(said.value))


@pytest.mark.parametrize(("header", "least"), [("3", 3.0), ("soon", 0.0), ("-5", 0.0)])
def test_a_server_says_how_long_to_wait(
    server: Server, tmp_path: Path, header: str, least: float
) -> None:
    server.moods, server.headers = ["429"], {"Retry-After": header}
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    stories(writer(server, concurrency=1), tmp_path, **how)
    waited = server.times[1] - server.times[0]
    assert waited >= least
    assert least or waited < 2.9  # control: the pause is the header's


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["stall", "500"])
def test_an_interrupted_run_waits_for_no_answer(
    server: Server, tmp_path: Path, mood: str
) -> None:
    """Requests stall for 100 s, or wait as long before they are put again."""
    server.moods = ["well"] * 4 + [mood] * 200
    server.headers = {"Retry-After": "100"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "emoreg.cli", "stories", "--endpoint", server.url),
            *("--model", "m", "--emotions", "calm", "--kinds", "stories"),
            *("--out", str(tmp_path / "out"), "--quiet"),
        ],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has it ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / "out" / NAME
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)  # The line is there before the answer counts as kept.
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert len(Corpus(tmp_path / "out").stories(split="all")) == 4


def test_thoughts_are_no_text(server: Server, tmp_path: Path) -> None:
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    server.wrap = lambda text: f"<think>As an AI I must be calm.</think>\n\n{text}"
    found = stories(writer(server), tmp_path / "thought", **how)
    assert found.rejected == {}
    server.wrap = lambda text: text
    stories(writer(server), tmp_path / "plain", **how)
    assert files(tmp_path / "thought") == files(tmp_path / "plain")
    server.moods = ["thinks"] * 200
    with pytest.raises(ConnectionError, match="does the model think first"):
        stories(writer(server), tmp_path / "only", **how)


def test_more_fields_go_with_every_request(server: Server, tmp_path: Path) -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 77}
    how = ["stories", "--endpoint", server.url, "--model", "m", "--quiet"]
    how += ["--emotions", "calm", "--kinds", "stories", "--out", str(tmp_path)]
    assert main([*how, "--extra", json.dumps(off)]) == 0
    for request in server.asked:
        assert {**request, **off} == request
    assert main([*how, "--extra", "[1]"]) == 2
    assert main(how) == 2  # begun with other settings


def test_a_run_without_a_text_says_so(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.wrap = lambda text: text[:20]
    how = ["stories", "--endpoint", server.url, "--model", "m", "--quiet"]
    how += ["--emotions", "calm", "--kinds", "stories", "--out", str(tmp_path)]
    assert main(how) == 2
    said = capsys.readouterr()
    assert said.err.startswith("emoreg: m wrote no text that could be taken")
    assert f"Not taken: {12 * ATTEMPTS} too short" in said.out


def test_the_command_says_what_was_written(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        [
            *("stories", "--endpoint", server.url, "--model", "m", "--quiet"),
            *("--emotions", "wistful", "keen", "--kinds", "stories"),
            *("--out", str(tmp_path)),
        ]
    )
    assert status == 0
    said, lacking, where = capsys.readouterr().out.splitlines()
    assert said == "stories: 24 of 24 texts"
    assert lacking.startswith("`emoreg extract` can't use it yet: neutral.jsonl")
    assert where == f"The corpus: {tmp_path}"
    assert (tmp_path / "written.txt").read_text() == f"{said}\n{lacking}\n"
    assert Corpus(tmp_path).emotions() == ("wistful", "keen")  # any word is an emotion
    assert server.asked[0]["model"] == "m"


# ------------------------------------------------------------------- checks

STORY = Request(
    key="story/sad/t01",
    kind="stories",
    topic="t01",
    split="fit",
    emotion="sad",
    perspective="third",
)
NEUTRAL = Request(key="n", kind="neutral", topic="maps", split="fit", form="prose")
TALK = Request(
    key="d",
    kind="dialogues",
    topic="t01",
    split="fit",
    emotion="sad",
    speaker="user",
)
HIDDEN = replace(TALK, kind="masked_dialogues", shown="calm")
ASKED = messages_for(STORY)[0]["content"].replace("sad", "glum")
GOOD = told("good")
TURNS = "User: " + told("a", 20) + "\nAssistant: " + told("b", 20)


@pytest.mark.parametrize(
    ("reason", "request_", "answer"),
    [
        (checks.EMPTY, STORY, f"  {SEPARATOR} "),
        (checks.SHORT, STORY, told("x", 49)),
        (checks.LONG, STORY, told("x", 401)),
        (checks.NAMED, STORY, f"She was sadly late. {GOOD}"),
        (checks.NAMED, NEUTRAL, f"The angry sea is 12 km wide. {GOOD}"),
        (
            checks.ABOUT_TASK,
            STORY,
            f"Here is a short scene for you. {GOOD}",
        ),
        (checks.ABOUT_TASK, STORY, f"As an AI, I do not feel. {GOOD}"),
        (checks.ABOUT_TASK, STORY, f"I’m sorry, but I can’t write that. {GOOD}"),
        (checks.ABOUT_TASK, STORY, f"I cannot assist with that request. {GOOD}"),
        (checks.ABOUT_TASK, STORY, f"Unfortunately, I am unable to do this. {GOOD}"),
        (checks.ABOUT_TASK, STORY, f"**Scene 1**\n{GOOD}"),
        (checks.ABOUT_TASK, STORY, f"Title: The Letter\n{GOOD}"),
        (checks.ABOUT_TASK, STORY, f"# The Letter\n{GOOD}"),
        (checks.ABOUT_TASK, STORY, f"{GOOD}\n(Note: the word is not used.)"),
        (checks.ECHO, STORY, f"{ASKED} {GOOD}"),
        (checks.THINKING, STORY, f"<think>\nThe user wants a scene. {GOOD}"),
        (checks.REPEATING, STORY, "on and on it went, " * 30 + "end."),
        (checks.CUT_OFF, STORY, GOOD.rstrip(".")),
        (checks.NO_DIALOGUE, TALK, GOOD),
        (checks.NO_DIALOGUE, TALK, TURNS.replace("User:", "Assistant:")),
        (checks.NO_DIALOGUE, HIDDEN, f"Scenario: {GOOD}"),
        (checks.NO_SCENARIO, HIDDEN, TURNS),
        (checks.NO_SCENARIO, HIDDEN, f"Scenario:\n{TURNS}"),
        (checks.NAMED, HIDDEN, f"Scenario: He was sad.\n{TURNS}"),
        (checks.NAMED, HIDDEN, f"Scenario: He fell.\n{TURNS} Calmly."),
    ],
)
def test_every_refusal_has_its_reason(
    reason: str, request_: Request, answer: str
) -> None:
    assert [draft.reason for draft in drafts(request_, answer)] == [reason]
    assert reason in REASONS


def test_good_texts_are_taken() -> None:
    assert drafts(STORY, GOOD)[0].reason == ""
    assert drafts(TALK, TURNS)[0].reason == ""
    for begins in ("Scenario: He fell.", "**Scenario:**\nHe fell.\n", "scenario : x"):
        assert drafts(HIDDEN, f"{begins}\n{TURNS}")[0].reason == ""
    for begins in (
        "I can't help smiling.",
        "Sorry, said the clerk, I can't find it.",
        "Scene of the fire, she read.",
        "**Rain** fell.",
        "A letter or message arrives at home: for the third time.",
    ):
        assert drafts(STORY, f"{begins} {GOOD}")[0].reason == "", begins
    plain = f"This kind of bolt is safe to 3 kN. {GOOD}"
    assert drafts(NEUTRAL, plain)[0].reason == ""
    thought = drafts(STORY, f"<think>\nSad it is.\n</think>\n\n{GOOD}")
    assert [(draft.text, draft.reason) for draft in thought] == [(GOOD, "")]


@pytest.mark.parametrize(
    "line", [SEPARATOR, "===NEXT===", "**=== NEXT ===**", "=== Next", "= = NEXT = ="]
)
def test_texts_are_told_apart(line: str) -> None:
    other = told("other")
    both = drafts(STORY, f"{GOOD}\n\n{line}\n{other}")
    assert [(draft.text, draft.reason) for draft in both] == [(GOOD, ""), (other, "")]
    inside = drafts(STORY, f"{GOOD}\nThe NEXT day = {line}\n{other}")  # no own line
    assert len(inside) == 1


def test_packaged_texts_pass_the_checks() -> None:
    """The checks turn away less than one in a hundred of texts known to be good."""
    corpus = Corpus.packaged()
    refused = 0
    for story in corpus.stories(split="all"):
        request = Request(
            key="s",
            kind="stories",
            topic=story.topic,
            split="fit",
            emotion=story.emotion,
            perspective=story.perspective,
        )
        refused += drafts(request, story.text)[0].reason != ""
    for passage in corpus.neutral("all"):
        if passage.text is not None:
            refused += drafts(NEUTRAL, passage.text)[0].reason != ""
    assert refused < 0.01 * 2052


def test_turns_are_read_as_they_are_written() -> None:
    said = "**User:** One.\n\n**Assistant**: Two\nand three.\nUser: Four."
    assert messages_in(said) == [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "Two\nand three."},
        {"role": "user", "content": "Four."},
    ]
    for wrong in ("User: One.", "A talk.\nUser: a\nAssistant: b", "User: a\nUser: b"):
        assert messages_in(wrong) == []


def test_texts_alike_are_taken_once() -> None:
    seen = Seen()
    assert seen.reason(GOOD) == ""
    seen.add(GOOD)
    assert seen.reason(GOOD.upper() + "!!") == checks.DUPLICATE
    words = GOOD.split()
    assert seen.reason(" ".join(words[:60] + ["other"] * 9)) == checks.NEAR
    assert seen.reason(told("something else")) == ""  # control


def test_a_request_is_put_again_and_given_up_in_the_end() -> None:
    requests = plan(("sad",), ("stories",), 1)[:2]
    one, two = (request.key for request in requests)
    judged = judge(requests, {(one, 0): GOOD, (two, 0): GOOD})
    assert judged.taken == {one: (GOOD,), two: ()}
    assert judged.rejected == {checks.DUPLICATE: 1}
    assert [(r.key, attempt) for r, attempt in judged.missing] == [(two, 1)]
    answers = {(one, 0): GOOD} | {(two, a): "Too short." for a in range(ATTEMPTS)}
    judged = judge(requests, answers)
    assert judged.missing == ()
    assert judged.given_up == (two,)
    assert judged.rejected == {checks.SHORT: ATTEMPTS}


def test_the_order_in_which_answers_come_makes_no_difference() -> None:
    """Seven texts for twelve requests: who is given one must not depend on who came."""
    requests = plan(("sad",), ("stories",), 2)
    draw = torch.Generator().manual_seed(0)
    given = {
        (request.key, attempt): f"\n{SEPARATOR}\n".join(
            told(str(int(torch.randint(7, (1,), generator=draw)))) for _ in range(2)
        )
        for request in requests
        for attempt in range(ATTEMPTS)
    }
    first = judge(requests, given)
    assert sum(len(texts) for texts in first.taken.values()) == 7
    assert first.rejected[checks.DUPLICATE] > 12
    backward = judge(requests[::-1], given)
    assert backward.taken != first.taken  # control: the plan's order does matter
    for _ in range(5):
        order = torch.randperm(len(given), generator=draw).tolist()
        items = [list(given.items())[place] for place in order]
        again = judge(requests, dict(items))
        assert (again.taken, again.rejected) == (first.taken, first.rejected)
        # Of any part of them the first attempt that is not complete is put next.
        part = judge(requests, dict(items[: len(items) // 2]))
        attempt = part.missing[0][1]
        assert {a for _, a in part.round} == {attempt}
        assert set(part.missing) <= set(part.round)
        if attempt == 0:  # those that are answered stay in it
            assert [request for request, _ in part.round] == list(requests)
            assert len(part.missing) < len(requests)


def test_the_plan_bans_what_it_asks_for() -> None:
    for request in plan(EMOTIONS, KINDS, 2):
        (message,) = messages_for(request)
        if request.kind != "neutral":
            assert f"'{request.emotion}'" in message["content"]
        assert (SEPARATOR in message["content"]) == (request.texts > 1)
    keys = [request.key for request in plan(EMOTIONS, KINDS, 2)]
    assert len(set(keys)) == len(keys)
    for emotions in (EMOTIONS[:2], EMOTIONS, Corpus.packaged().emotions()):
        masked = plan(emotions, ("masked",), 1)
        assert all(r.emotion != r.shown for r in masked)
        for emotion in emotions:
            own = [r for r in masked if r.emotion == emotion]
            assert [r.split for r in own] == ["fit", "fit", "fit", "test"]
            assert len({r.shown for r in own}) == min(4, len(emotions) - 1)
        dialogues = plan(emotions, ("masked_dialogues",), 1)
        pairs = [(r.emotion, r.shown, r.split) for r in dialogues]
        assert pairs == [(r.emotion, r.shown, r.split) for r in masked]
        # Both speakers hide something in both splits.
        assert len({(r.speaker, r.split) for r in dialogues}) == 4


@pytest.mark.parametrize(
    ("emotions", "kinds", "message"),
    [
        (EMOTIONS, ("poems",), "`kinds` must be one of"),
        (EMOTIONS, (), "`kinds` must name one or more"),
        (("sad",), ("masked",), "`masked` needs two emotions or more.*found 1"),
        (("sad",), ("masked_dialogues",), "`masked_dialogues` needs two emotions"),
        ("sad", ("stories",), "must be a list of one or more names, found 'sad'"),
        ((), ("stories",), "must be a list of one or more names, found ()"),
        (("../sad",), ("stories",), r"found '\.\./sad', which makes no file name"),
        (("a/b",), ("stories",), "makes no file name"),
        (("sad", "sad"), ("stories",), r"'sad' and 'sad', both of `sad\.jsonl`"),
        (("at ease", "at-ease"), ("stories",), r"both of `at-ease\.jsonl`"),
    ],
)
def test_a_plan_that_can_not_be_is_refused(
    emotions: Sequence[str], kinds: Sequence[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(emotions, kinds, 1)
    every = Corpus.packaged().emotions()  # control: they all make file names
    assert len(plan(every, ("stories",), 1)) == 171 * 12


def test_a_folder_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        Journal(tmp_path / "file" / "corpus", {})


def test_a_full_disk_leaves_files_whole(tmp_path: Path) -> None:
    requests = plan(("sad",), ("stories",), 1)
    taken: dict[str, Sequence[str]] = {r.key: [told(r.key)] for r in requests}
    write_corpus(tmp_path, requests, taken)
    before = files(tmp_path)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        longer = {r.key: [told(r.key, 90)] for r in requests}
        with pytest.raises(OSError, match="File too large"):
            write_corpus(tmp_path, requests, longer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert files(tmp_path) == before
    assert sorted(p.name for p in (tmp_path / "stories").iterdir()) == ["sad.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "journal"])
def test_a_full_disk_is_said_and_gone_on_from(
    server: Server, tmp_path: Path, kind: str
) -> None:
    """In a process of its own that may not write files beyond a few thousand bytes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    stories(writer(server), whole, **how)
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "from emoreg.cli import main; raise SystemExit(main())"
    )
    if kind == "files":  # the answers are all there, the files are still to be made
        cut.mkdir()
        (cut / NAME).write_bytes((whole / NAME).read_bytes())
    said = subprocess.run(
        [
            *(sys.executable, "-c", limited, "stories", "--endpoint", server.url),
            *("--model", "some-model", "--emotions", "calm", "--kinds", "stories"),
            *("--out", str(cut), "--quiet", "--concurrency", "1"),
        ],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert "File too large. What " in line
    assert line.endswith("make room and give the same command again")
    assert list(cut.rglob("*.partial")) == []
    kept = (cut / NAME).read_bytes().count(b"\n") - 1
    if kind == "journal":  # half of the answers, and what they give is a corpus
        assert 0 < kept < 12
        assert len(Corpus(cut).stories(split="all")) == kept
    else:
        assert not list((cut / "stories").iterdir())
    stories(writer(server), cut, **how)
    assert files(cut) == files(whole)


# ------------------------------------------------------------- a local model


def test_a_model_that_writes_nonsense_has_its_texts_refused(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("emoreg.writing.write.TOKENS", 8)
    local = LocalWriter(tiny_model("llama"), tokenizer, batch=5)
    found = stories(local, tmp_path, emotions=("calm",), kinds=("stories",), quiet=True)
    assert found.taken == {"stories": 0}
    assert len(found.given_up) == 12
    assert sum(found.rejected.values()) == 12 * ATTEMPTS
    assert not (tmp_path / "emotions.json").exists()
    summary = (tmp_path / "written.txt").read_text()
    assert summary.count("given up: story/calm/") == 12
    again = stories(local, tmp_path, emotions=("calm",), kinds=("stories",), quiet=True)
    assert again.rejected == found.rejected
    assert tokenizer.padding_side == "right"  # as it was


def prompts(*seeds: int, answered: Sequence[int] = ()) -> list[Prompt]:
    """Return prompts of different lengths with a seed each."""
    return [
        Prompt(
            messages=({"role": "user", "content": "Go on." * (1 + seed % 3)},),
            seed=seed,
            tokens=12,
            answered=seed in answered,
        )
        for seed in seeds
    ]


@pytest.mark.parametrize("seed", range(20))
def test_batches_hold_all_once_and_pad_by_no_more_than_half(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [int(2 ** draw.uniform(0, 12)) for _ in range(draw.randint(1, 40))]
    most = draw.randint(1, 8)
    batches = list(alike(lengths, most))
    assert sorted(place for batch in batches for place in batch) == [
        *range(len(lengths))
    ]
    for batch in batches:
        assert len(batch) <= most
        longest = max(lengths[place] for place in batch)
        assert longest < 2 * min(lengths[place] for place in batch)
    # Control: in the order they are given in, one long text pads all of its batch.
    assert [*alike([10, 4000, 10], 3)] == [[0, 2], [1]]


def test_a_seed_is_what_sampling_depends_on(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    local = LocalWriter(tiny_model("llama"), tokenizer, batch=2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = dict(local.answers(prompts(3, 4, 5)))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's is left alone
    assert dict(local.answers(prompts(3, 4, 5))) == one
    other = dict(local.answers(prompts(8, 9, 10)))
    assert not set(other.values()) & set(one.values())  # control
    # Neither the order nor who shares a batch matters: this model is in float32.
    three, four, five = one[0], one[1], one[2]
    assert dict(local.answers(prompts(5, 3, 4))) == {0: five, 1: three, 2: four}
    alone = LocalWriter(tiny_model("llama"), tokenizer, batch=1)
    assert dict(alone.answers(prompts(3, 4, 5))) == one


def test_tokens_are_drawn_as_likely_as_they_are() -> None:
    """Against the probabilities themselves, cut at the share that is kept."""
    probability = torch.tensor([0.5, 0.02, 0.3, 0.1, 0.08])
    many, temperature = 20_000, 2.0
    scores = (probability.log() * temperature).repeat(many, 1)
    draw = _OwnDraws(list(range(many)), temperature)
    tokens = draw(torch.zeros(many, 1, dtype=torch.long), scores).argmax(-1)
    found = torch.bincount(tokens, minlength=5) / many
    kept = torch.tensor([0.5, 0.0, 0.3, 0.1, 0.08])  # 0.95 is reached without the last
    torch.testing.assert_close(found, kept / kept.sum(), atol=0.015, rtol=0)
    assert found[1] == 0
    wrong = probability / probability.sum()
    assert not torch.allclose(found, wrong.flip(0), atol=0.015)  # control
    with pytest.raises(FloatingPointError, match="scores must be finite"):
        draw(torch.zeros(many, 1, dtype=torch.long), scores * float("nan"))


def test_a_local_run_that_goes_on_makes_the_same_batches(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    local = LocalWriter(tiny_model("llama"), tokenizer, batch=2)
    whole = dict(local.answers(prompts(3, 4, 5, 6, 7)))
    model, rows = tiny_model("llama"), list[int]()
    model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])),
        with_kwargs=True,
    )
    again = LocalWriter(model, tokenizer, batch=2)
    rest = dict(again.answers(prompts(3, 4, 5, 6, 7, answered=(3, 4, 6))))
    assert rest == {2: whole[2], 4: whole[4]}
    assert rows == [2] * 12 + [1] * 12  # 5 with 6, and 7: not 5 with 7


def test_the_tokenizer_is_left_as_it_was(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.pad_token = None
    local = LocalWriter(tiny_model("llama"), tokenizer, batch=2)
    assert len(list(local.answers(prompts(1, 2)))) == 2
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "right")


def test_a_model_that_can_think_is_told_not_to(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = str(tokenizer.chat_template)
    (prompt,) = prompts(1)
    before = _asked(tokenizer, prompt)
    tokenizer.chat_template = (
        plain + "{% if enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n{% endif %}"
    )
    assert _asked(tokenizer, prompt) == before + "<think>\n\n</think>\n"
    LocalWriter(tiny_model("llama"), tokenizer)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": 0.0}, r"`temperature` must be above 0.*found 0\.0"),
        ({"temperature": float("nan")}, "`temperature` must be above 0"),
        ({"batch": 0}, "texts written at a time must be 1 or more, found 0"),
    ],
)
def test_what_can_not_be_sampled_with_is_refused(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    how: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        LocalWriter(tiny_model("llama"), tokenizer, **how)
    if "batch" in how:
        how = {"concurrency": how["batch"]}
    with pytest.raises(ValueError, match=message):
        EndpointWriter("http://127.0.0.1:9/v1", "m", **how)


# ------------------------------------------------------------- trained weights


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Give the address of `transformers serve` with the demo model, and its name."""
    import emoreg

    model, tokenizer = emoreg.demo.load()
    model.generation_config.do_sample = True  # or the server decodes greedily
    folder = tmp_path_factory.mktemp("served")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "transformers.cli.transformers", "serve"),
            *("--host", "127.0.0.1", "--port", port, "--device", "cpu", str(folder)),
        ],
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            break
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
    yield f"{url}/v1", str(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log.close()


@pytest.mark.slow
def test_a_real_endpoint_writes(
    served: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is taken must be as it must be; how much is, a small model decides."""
    monkeypatch.setattr("emoreg.writing.judging.ATTEMPTS", 1)
    monkeypatch.setattr("emoreg.writing.write.TOKENS", 40)
    url, name = served
    asked = EndpointWriter(url, name, concurrency=2)
    how: dict[str, Any] = {"emotions": ("calm", "sad"), "kinds": ("masked",)}
    found = stories(asked, tmp_path, **how, quiet=True)
    many = len(plan(how["emotions"], how["kinds"], 1))
    assert found.wanted == {"masked": many}
    assert found.taken["masked"] + sum(found.rejected.values()) == many
    assert found.taken["masked"] + len(found.given_up) == many
    lines = (tmp_path / NAME).read_bytes().splitlines()[1:]
    answers = [json.loads(line)["answer"] for line in lines]
    assert len({answer for answer in answers if len(answer.split()) > 9}) > many // 2
    before = (tmp_path / NAME).read_bytes()
    again = stories(asked, tmp_path, **how, quiet=True)
    assert again.lines() == found.lines()
    assert (tmp_path / NAME).read_bytes() == before  # nothing was asked again


@pytest.mark.slow
def test_a_real_endpoint_says_why_it_refuses(
    served: tuple[str, str], tmp_path: Path
) -> None:
    url, _ = served
    with pytest.raises(ConnectionError, match=r"status 400: .*requested 'another'"):
        stories(
            EndpointWriter(url, "another"), tmp_path, emotions=("calm",), quiet=True
        )


@pytest.mark.slow
def test_the_demo_model_writes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One short try at each of twelve stories; cut off after five, it goes on alike."""
    import emoreg

    monkeypatch.setattr("emoreg.writing.judging.ATTEMPTS", 1)
    monkeypatch.setattr("emoreg.writing.write.TOKENS", 40)
    model, tokenizer = emoreg.demo.load()
    local = LocalWriter(model, tokenizer, batch=6)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    how: dict[str, Any] = {"emotions": ("calm",), "kinds": ("stories",), "quiet": True}
    found = stories(local, whole, **how)
    assert found.taken["stories"] == 12 - len(found.given_up)
    assert found.taken["stories"] + sum(found.rejected.values()) == 12
    cut.mkdir()
    lines = (whole / NAME).read_bytes().splitlines(keepends=True)
    (cut / NAME).write_bytes(b"".join(lines[:6]))
    stories(local, cut, **how)
    assert (cut / NAME).read_bytes() == (whole / NAME).read_bytes()
    assert files(cut) == files(whole)
    answers = [json.loads(line)["answer"] for line in lines[1:]]
    assert len(set(answers)) == 12  # control: every request has draws of its own
