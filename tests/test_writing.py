"""Writing a corpus: against a real server that misbehaves, cut off, and at once."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
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
from emoreg.writing.endpoint import RETRIES, EndpointWriter
from emoreg.writing.journal import NAME, Journal
from emoreg.writing.judging import ATTEMPTS, judge
from emoreg.writing.local import LocalWriter
from emoreg.writing.plan import KINDS, Request, plan
from emoreg.writing.prompts import SEPARATOR, messages_for
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
        return "\n\n".join(f"{name}: {said}" for name, said in turns)
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
        self.pause = 0.0
        self.once_left: int | None = None

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
        with self.server.lock:
            mood = self.server.moods.pop(0) if self.server.moods else "well"
            self.server.asked.append(request)
            self.server.keys.append(str(self.headers.get("Authorization")))
        time.sleep(self.server.pause)
        if mood == "stall":
            time.sleep(3)
        if mood == "hang up":
            self.close_connection = True
            return
        if mood.isdigit():
            self._send(int(mood), b'{"error": {"message": "told to"}}')
            return
        text = answer_to(request["messages"][0]["content"])
        body = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": text},
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
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
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
    assert (written.rejected, written.given_up) == ({}, ())
    corpus = Corpus(tmp_path)
    assert corpus.emotions() == EMOTIONS
    assert len(corpus.stories(split="fit")) == 24
    assert len(corpus.neutral("all")) == 160
    assert len(corpus.records("dialogues", split="test")) == 3 * 2
    assert len(corpus.records("masked", split="all")) == 3 * 2
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


@pytest.mark.parametrize("mood", ["500", "nonsense", "empty"])
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
    server.moods = [mood]
    with pytest.raises(ConnectionError, match=f"status {mood}: .*told to"):
        stories(writer(server, concurrency=1), tmp_path, emotions=("calm",), quiet=True)
    assert len(server.asked) == 1


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


def test_the_command_says_what_was_written(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        [
            *("stories", "--endpoint", server.url, "--model", "m", "--quiet"),
            *("--emotions", "wistful", "--kinds", "stories", "--out", str(tmp_path)),
        ]
    )
    assert status == 0
    assert capsys.readouterr().out.splitlines() == [
        "stories: 12 of 12 texts",
        f"The corpus: {tmp_path}",
    ]
    assert Corpus(tmp_path).emotions() == ("wistful",)  # any word is an emotion
    assert server.asked[0]["model"] == "m"


# ------------------------------------------------------------------- checks

STORY = Request(
    key="story/sad/t01", kind="stories", topic="t01", split="fit", emotion="sad"
)
NEUTRAL = Request(key="n", kind="neutral", topic="maps", split="fit", form="prose")
TALK = Request(key="d", kind="dialogues", topic="t01", split="fit", emotion="sad")
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
        (checks.REPEATING, STORY, "on and on it went, " * 30 + "end."),
        (checks.CUT_OFF, STORY, GOOD.rstrip(".")),
        (checks.NO_DIALOGUE, TALK, GOOD),
        (checks.NO_DIALOGUE, TALK, TURNS.replace("User:", "Assistant:")),
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
    plain = f"This kind of bolt is safe to 3 kN. {GOOD}"
    assert drafts(NEUTRAL, plain)[0].reason == ""
    both = drafts(STORY, f"{GOOD}\n{SEPARATOR}\n{told('other')}")
    assert [draft.reason for draft in both] == ["", ""]


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


def test_the_plan_bans_what_it_asks_for() -> None:
    for request in plan(EMOTIONS, KINDS, 2):
        (message,) = messages_for(request)
        if request.kind != "neutral":
            assert f"'{request.emotion}'" in message["content"]
        assert (SEPARATOR in message["content"]) == (request.texts > 1)
    keys = [request.key for request in plan(EMOTIONS, KINDS, 2)]
    assert len(set(keys)) == len(keys)
    felt = {(r.emotion, r.shown) for r in plan(EMOTIONS, ("masked",), 1)}
    assert all(emotion != shown for emotion, shown in felt)
    with pytest.raises(ValueError, match="`kinds` must be one of"):
        plan(EMOTIONS, ("poems",), 1)


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
    again = stories(local, tmp_path, emotions=("calm",), kinds=("stories",), quiet=True)
    assert again.rejected == found.rejected
    assert tokenizer.padding_side == "right"  # as it was


def test_a_seed_is_what_sampling_depends_on(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    local = LocalWriter(tiny_model("llama"), tokenizer, batch=2)
    said = ({"role": "user", "content": "Go on."},)

    def written(*seeds: int) -> list[str]:
        prompts = [Prompt(messages=said, seed=seed, tokens=12) for seed in seeds]
        found = dict(local.answers(prompts))
        return [found[place] for place in range(len(seeds))]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = written(3, 4, 5)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's is left alone
    assert written(3, 4, 5) == one
    assert written(8, 9, 10) != one  # control
    assert len(one) == 3


# ------------------------------------------------------------- trained weights


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Give the address of `transformers serve` with the demo model, and its name."""
    import emoreg

    model, tokenizer = emoreg.demo.load()
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
def test_a_real_endpoint_writes(served: tuple[str, str], tmp_path: Path) -> None:
    """What is taken must be as it must be; how much is, a small model decides."""
    url, name = served
    asked = EndpointWriter(url, name, concurrency=2)
    found = stories(asked, tmp_path, emotions=("calm",), kinds=("stories",), quiet=True)
    total = found.taken["stories"] + sum(found.rejected.values())
    assert total >= 12
    assert found.taken["stories"] + len(found.given_up) == 12
    assert found.taken["stories"] > 0
    for story in Corpus(tmp_path).stories(split="all"):
        assert len(story.text.split()) >= checks.FEWEST_WORDS
    before = (tmp_path / NAME).read_bytes()
    again = stories(asked, tmp_path, emotions=("calm",), kinds=("stories",), quiet=True)
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
