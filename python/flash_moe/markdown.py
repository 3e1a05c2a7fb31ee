"""Light rendering of markdown as it streams: styles are added, no character is taken away."""

from __future__ import annotations

from .terminal import BOLD, CYAN, DIM, RESET


class MarkdownStyler:
    """Adds terminal styles for headings, **bold**, `code` and fenced blocks. Not thread-safe.

    What it returns, styles removed, is what was pushed: text can be copied as the model wrote it.
    """

    def __init__(self, *, enabled: bool) -> None:
        """Starts at the beginning of a line."""
        self._enabled = enabled
        self._held = ""  # a run of "*" or "`" that may go on
        self._line_start = True
        self._bold = self._code = self._fence = self._heading = False

    def push(self, text: str) -> str:
        """Returns the text that can be shown, with styles."""
        if not self._enabled:
            return text
        shown = []
        for character in text:
            if self._held and character != self._held[0]:
                shown.append(self._run())
            if character in "*`":
                self._held += character
            else:
                shown.append(self._character(character))
        return "".join(shown)

    def finish(self) -> str:
        """Returns what was held back, with all styles ended."""
        end = self._run() if self._held else ""
        styled = self._bold or self._code or self._fence or self._heading
        self._bold = self._code = self._fence = self._heading = False
        return end + RESET if styled else end

    def _style(self) -> str:
        style = RESET
        if self._fence:
            return style + DIM
        if self._heading or self._bold:
            style += BOLD
        return style + CYAN if self._code else style

    def _run(self) -> str:
        run, self._held = self._held, ""
        at_start, self._line_start = self._line_start, False
        if run.startswith("```") and at_start:
            self._fence = not self._fence
            return self._style() + run if self._fence else run + self._style()
        if self._fence:
            return run
        opening = False
        if run == "`":
            opening = self._code = not self._code
        elif run in ("**", "***") and not self._code:
            opening = self._bold = not self._bold
        else:
            return run
        return self._style() + run if opening else run + self._style()

    def _character(self, character: str) -> str:
        if character == "\n":
            self._line_start = True
            changed = self._heading or self._bold or self._code
            # Inline styles do not outlive their line: a lone marker must not dim the rest of the
            # answer.
            self._heading = self._bold = self._code = False
            return (self._style() if changed else "") + "\n"
        if self._line_start and character == "#" and not self._fence:
            self._line_start = False
            self._heading = True
            return self._style() + character
        if character != " ":
            self._line_start = False
        return character
