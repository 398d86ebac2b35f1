"""A context that is entered while something else is done."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """Enters a context on a thread of its own, because starting Ray is seconds of waiting, and leaves it there.

    One thread for both, which lives as long as the context: on Linux, Ray's processes are killed when the thread that started them ends.
    Leaving is waited for: Ray ends a process, with exit code 1, in which one of its references is dropped while it stops on another thread.
    """

    def __init__(self, context: AbstractContextManager[T]) -> None:
        self._context = context
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._left = False

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
        """Leave the context, if that is not done yet."""
        if not self._left:
            self._left = True
            self._thread.submit(self._leave).result()

    def _leave(self) -> None:
        if self._entered.exception() is None:
            self._context.__exit__(None, None, None)

    def __exit__(self, *_: object) -> None:
        try:
            self.leave()
        finally:
            self._thread.shutdown()
