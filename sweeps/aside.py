"""A context that is entered and left while something else is done."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """Enters a context on a thread of its own and leaves it there, because starting and stopping Ray are seconds of waiting.

    One thread for both, which lives as long as the context: on Linux, Ray's processes are killed when the thread that started them ends.
    """

    def __init__(self, context: AbstractContextManager[T]) -> None:
        self._context = context
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._left: Future[None] | None = None

    def __enter__(self) -> "Aside[T]":
        self._entered = self._thread.submit(self._context.__enter__)
        return self

    def value(self) -> T:
        """What the context gives, once it is entered.

        Raises:
            Exception: whatever entering it raised.
        """
        return self._entered.result()

    def leave(self) -> None:
        """Begin to leave the context. Does not wait."""
        if self._left is None:
            self._left = self._thread.submit(self._leave)

    def _leave(self) -> None:
        if self._entered.exception() is None:
            self._context.__exit__(None, None, None)

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._thread.shutdown()
        if self._left is not None:
            self._left.result()
