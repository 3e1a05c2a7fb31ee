"""Stop strings, found across token borders: text that may be the start of one is held back."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ConfigError


class StopMatcher:
    """Passes text through until one of the stop strings is complete. Not thread-safe.

    Attributes:
        stopped: True once a stop string has been found; what comes after it is dropped.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Starts at the beginning of a text.

        Raises:
            ConfigError: when a stop string is empty.
        """
        if isinstance(stops, str) or any(not isinstance(stop, str) or not stop for stop in stops):
            raise ConfigError(f"stop: wanted strings that are not empty, got {stops!r}")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Returns the text that can be shown now."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            self.stopped = True
            return text[: min(found)]
        held = max((self._overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Returns what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop` without completing it."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
