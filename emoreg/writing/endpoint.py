"""Writing with a model behind an OpenAI-compatible endpoint."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, final

from emoreg.writing.writer import Prompt

RETRIES, PAUSE, LONGEST_PAUSE = 5, 0.5, 30.0
"""How often a request is tried again; seconds before the first time, doubled each."""


@final
class EndpointWriter:
    """Asks `URL/chat/completions`, several prompts at a time.

    What may pass is tried again with longer and longer pauses: a refused or broken
    connection, no answer in time, status 408, 409, 429 and 5xx, an answer that holds no
    text. What won't is not: any other status.
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
            pause: Seconds before a request is tried again, doubled each time.

        Raises:
            ImportError: If the `openai` package is not installed.
        """
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ImportError(
                "asking an endpoint needs the openai package. Install it with "
                "`pip install 'emoreg[stories]'`"
            ) from error
        self._client: Any = OpenAI(
            base_url=url,
            api_key=os.environ.get(key_variable, "none"),
            timeout=timeout,
            max_retries=0,  # counted here, where what holds no text counts as well
        )
        self._url, self._model, self._concurrency = url, model, concurrency
        self._temperature, self._pause = temperature, pause

    def settings(self) -> dict[str, Any]:
        """Return the model's name and how it samples; not where it is."""
        return {"model": self._model, "temperature": self._temperature}

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield each prompt's place with its answer, as each comes.

        Raises:
            ConnectionError: If a request failed for good; those that were running are
                waited for and yielded first.
        """
        rest = iter(enumerate(prompts))
        failed: BaseException | None = None
        running: dict[Future[str], int] = {}
        with ThreadPoolExecutor(self._concurrency) as pool:
            while True:
                while failed is None and len(running) < self._concurrency:
                    following = next(rest, None)
                    if following is None:
                        break
                    place, prompt = following
                    running[pool.submit(self._answer, prompt)] = place
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: running[f]):
                    place, error = running.pop(future), future.exception()
                    if error is None:
                        yield place, future.result()
                    failed = failed or error
        if failed is not None:
            raise failed

    def _answer(self, prompt: Prompt) -> str:
        """Return the answer to one prompt, tried as often as makes sense."""
        said = ""
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(min(self._pause * 2 ** (attempt - 1), LONGEST_PAUSE))
            text, said = self._once(prompt)
            if text is not None:
                return text
        raise ConnectionError(
            f"the endpoint must answer, {RETRIES + 1} tries at {self._url} failed; the "
            f"last one: {said}. What was written is kept: see to the endpoint and give "
            "the same command again"
        )

    def _once(self, prompt: Prompt) -> tuple[str | None, str]:
        """Return an answer, or None and what came instead, if it may pass."""
        from openai import APIConnectionError, APIError, APIStatusError

        try:
            found = self._client.chat.completions.create(
                model=self._model,
                messages=[dict(message) for message in prompt.messages],
                seed=prompt.seed,
                max_tokens=prompt.tokens,
                temperature=self._temperature,
            )
        except APIStatusError as error:
            status = error.status_code
            if status in (408, 409, 429) or status >= 500:
                return None, f"status {status}"
            raise ConnectionError(
                f"the endpoint must take the request, it refused it with status "
                f"{status}: {error.response.text[:300]}. What was written is kept: "
                "mend the address, the model's name or the key, and give the command "
                "again"
            ) from error
        except APIConnectionError as error:
            return None, f"{error} {error.__cause__ or ''}".strip()
        except (APIError, ValueError, TypeError) as error:
            return None, f"an answer that can't be read ({error})"
        return _text_of(found)


def _text_of(found: Any) -> tuple[str | None, str]:
    """Return the text of a completion, or None and what is there instead."""
    choices = getattr(found, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    if isinstance(text, str) and text.strip():
        return text, ""
    return None, "an answer without text"
