"""Writing with a model behind an OpenAI-compatible endpoint."""

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final, final

from emoreg.writing.writer import Prompt, check_sampling

RETRIES, PAUSE, LONGEST_PAUSE = 5, 0.5, 30.0
"""How often a request is tried again; seconds before the first time, doubled each."""
LONGEST_ASKED = 300.0
"""Seconds of pause that a server may ask for with `Retry-After`."""
SILENT = 3
"""Prompts without a text, and none with one so far, from which on not they are at
fault but how the endpoint is asked."""
# Only refusals that speak of a filter: others of status 400, as of a conversation that
# is too long, are about settings and must be told.
_FILTERED: Final = re.compile(
    r"content[ _]?(?:filter|(?:management )?policy|exists risk)|usage polic|"
    r"moderation|flagged|inappropriate",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Said:
    """What came of one request: a text, or what came in its place."""

    text: str | None = None
    """Empty where a filter would let none through."""
    instead: str = ""
    answered: bool = False
    """Whether what came instead is an answer, if one without text."""
    wait: float = 0.0
    """Seconds that the server asks to wait."""


@final
class EndpointWriter:
    """Asks `URL/chat/completions`, several prompts at a time.

    What may pass is tried again with longer and longer pauses, or the pause that the
    server asks for: a refused or broken connection, no answer in time, status 408, 409,
    429 and 5xx, an answer that holds no text. What won't is not: any other status.

    A prompt that never gets a text, or that a filter refuses, has an empty answer: it
    must not keep the others from theirs. While no prompt has one, that is no answer.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 8,
        temperature: float = 0.9,
        timeout: float = 120.0,
        key_variable: str = "OPENAI_API_KEY",
        extra: Mapping[str, Any] | None = None,
        pause: float = PAUSE,
    ) -> None:
        """Write with `model` at `url`.

        Args:
            url: Up to and without `/chat/completions`, for instance
                `http://localhost:8000/v1`.
            model: Its name there.
            concurrency: Requests at a time.
            temperature: Of sampling.
            timeout: Seconds to wait for one.
            key_variable: Environment variable with the key; it is neither logged nor
                written. Endpoints that want none need none.
            extra: More fields of every request, or others in place of those that are
                sent; for instance what turns a model's thinking off.
            pause: Seconds before a request is tried again, doubled each time.

        Raises:
            ImportError: If the `openai` package is not installed.
            ValueError: If the temperature is not above 0 or `concurrency` below 1.
        """
        check_sampling(temperature, concurrency)
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ImportError(
                "asking an endpoint needs the openai package. Install it with "
                "`pip install 'emoreg[stories]'`"
            ) from error
        self._key = os.environ.get(key_variable, "").strip()
        self._client: Any = OpenAI(
            base_url=url,
            api_key=self._key or "none",
            timeout=timeout,
            max_retries=0,  # counted here, where what holds no text counts as well
        )
        self._url, self._model, self._concurrency = url, model, concurrency
        self._temperature, self._pause = temperature, pause
        self._extra = dict(extra or {})
        self._worked = False

    def settings(self) -> dict[str, Any]:
        """Return the model's name and how it samples; not where it is."""
        how = {"model": self._model, "temperature": self._temperature}
        return {**how, "extra": self._extra} if self._extra else how

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield each prompt's place with its answer, as each comes.

        Raises:
            ConnectionError: If a request failed for good, or `SILENT` prompts have no
                text and none has; those under way are waited for and yielded first.
        """
        stop, silent = threading.Event(), list[int]()
        failed: BaseException | None = None
        try:
            for place, said in self._said(prompts, stop):
                if isinstance(said, BaseException):
                    failed = failed or said
                elif said.text is None:
                    silent.append(place)
                    if len(silent) == SILENT and not self._worked:
                        failed = failed or self._failure(said)
                        stop.set()
                else:
                    self._worked = self._worked or bool(said.text)
                    yield place, said.text
                if self._worked:
                    yield from ((place, "") for place in silent)
                    silent.clear()
        finally:
            stop.set()
        if failed is not None:
            raise failed
        yield from ((place, "") for place in silent)

    def _said(
        self, prompts: Sequence[Prompt], stop: threading.Event
    ) -> Iterator[tuple[int, _Said | BaseException]]:
        """Yield what came of each prompt, until `stop` is set; an error sets it."""
        places = [n for n, prompt in enumerate(prompts) if not prompt.answered]
        todo, lock = iter(places), threading.Lock()
        done: SimpleQueue[tuple[int, _Said | BaseException] | None] = SimpleQueue()

        def work() -> None:
            while not stop.is_set():
                with lock:
                    place = next(todo, None)
                if place is None:
                    break
                try:
                    done.put((place, self._answer(prompts[place], stop)))
                except BaseException as error:
                    done.put((place, error))
                    stop.set()
            done.put(None)

        # Daemons: a program that is interrupted waits for no answer.
        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self._concurrency, len(places)))
        ]
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            found = done.get()
            if found is None:
                running -= 1
            else:
                yield found

    def _answer(self, prompt: Prompt, stop: threading.Event) -> _Said:
        """Return what came of one prompt, tried as often as makes sense."""
        said = _Said()
        for attempt in range(RETRIES + 1):
            if attempt:
                own = min(self._pause * 2 ** (attempt - 1), LONGEST_PAUSE)
                if said.wait > LONGEST_PAUSE:
                    logger.info("The endpoint asks to wait %.0f s", said.wait)
                if stop.wait(max(own, said.wait)):
                    raise self._failure(said)
            said = self._once(prompt)
            if said.text is not None:
                return said
        if not said.answered:
            raise self._failure(said)
        logger.info("A prompt has no text: %s", said.instead)
        return said

    def _failure(self, said: _Said) -> ConnectionError:
        return ConnectionError(
            f"the endpoint must answer, {RETRIES + 1} tries at {self._url} failed; the "
            f"last one: {said.instead}. What was written is kept: see to the endpoint "
            "and give the same command again"
        )

    def _once(self, prompt: Prompt) -> _Said:
        """Return an answer, or what came instead if it may pass."""
        from openai import APIConnectionError, APIError, APIStatusError

        try:
            found = self._client.chat.completions.create(
                model=self._model,
                messages=[dict(message) for message in prompt.messages],
                seed=prompt.seed,
                max_tokens=prompt.tokens,
                temperature=self._temperature,
                extra_body=self._extra or None,
            )
        except APIStatusError as error:
            status = error.status_code
            if status in (408, 409, 429) or status >= 500:
                wait = _seconds(error.response.headers.get("Retry-After"))
                return _Said(instead=f"status {status}", wait=wait)
            reason = self._without_key(error.response.text)[:300]
            if status in (400, 403) and _FILTERED.search(error.response.text):
                logger.info("A filter refused a prompt: %s", reason)
                return _Said(text="")
            raise ConnectionError(
                f"the endpoint must take the request, it refused it with status "
                f"{status}: {reason}. What was written is kept: mend the address, the "
                "model's name or the key, and give the command again"
            ) from None  # what openai raises holds the server's words as they came
        except APIConnectionError as error:
            said = f"{error} {error.__cause__ or ''}".strip()
            return _Said(instead=self._without_key(said))
        except (APIError, ValueError, TypeError) as error:
            said = self._without_key(str(error))
            return _Said(instead=f"an answer that can't be read ({said})")
        return _text_of(found)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


def _seconds(asked: str | None) -> float:
    """Return the seconds of `Retry-After`; 0 for none, or for a date."""
    try:
        return min(max(float(asked or 0), 0.0), LONGEST_ASKED)
    except ValueError:
        return 0.0


def _text_of(found: Any) -> _Said:
    """Return the text of a completion, or what is there instead."""
    choices = getattr(found, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    if isinstance(text, str) and text.strip():
        # Half a character, as where an answer was cut, can be written to no file.
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return _Said(text=whole)
    why = getattr(choices[0], "finish_reason", None) if choices else None
    if why == "content_filter":
        return _Said(text="")
    thinks = ", cut at its longest: does the model think first? See `--extra`"
    instead = f"an answer without text{thinks if why == 'length' else ''}"
    return _Said(instead=instead, answered=True)
