"""Messages in; the same messages, in order, at a receiver that may be away for a while, out."""

import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

Message = dict[str, Any]

# While this is set, a call comes from an outbox: what guards a receiver lets it through.
delivering: contextvars.ContextVar[bool] = contextvars.ContextVar("delivering", default=False)


class Letter:
    """A message on its way.

    Attributes:
        message: What is to be delivered.
        error: Why the receiver refused it, if it did.
        done: Whether it was delivered or refused.
    """

    def __init__(self, message: Message) -> None:
        self.message = message
        self.error: Exception | None = None
        self.done = False


class Outbox:
    """Delivers messages in order, each once, and keeps them while the receiver is away.

    Sending is done by a thread, so that a receiver that hangs makes nobody wait for longer than
    `patience`. After a failure messages are kept until `retry`.

    Args:
        deliver: Sends one message; raises where that fails.
        is_away: Tells an error that another try may cure from a refusal, which is final.
        patience: How long a call waits, in seconds, without a message being delivered.

    Attributes:
        away: Whether messages are kept rather than sent.
        reason: What went wrong last, in the receiver's words.
        refused: Letters whose refusal nobody was told yet.
    """

    def __init__(
        self,
        deliver: Callable[[Message], None],
        is_away: Callable[[Exception], bool],
        patience: float,
    ) -> None:
        self._deliver, self._is_away, self._patience = deliver, is_away, patience
        self._letters: list[Letter] = []
        self._changed = threading.Condition()
        self._sender: threading.Thread | None = None
        self.away = False
        self.reason = ""
        self.refused: list[Letter] = []

    def post(self, message: Message, *, wait: bool = True) -> Letter:
        """Take a message, and send it unless the receiver is away.

        Args:
            message: What is to be delivered.
            wait: Whether to wait until it is delivered, for no longer than the patience.

        Returns:
            The letter; where it is done, its error is the caller's to handle.
        """
        letter = Letter(message)
        with self._changed:
            self._letters.append(letter)
            if self.away:
                return letter
            if self._sender is None:
                self._start()
            if wait:
                self._wait(letter)
                if letter.error is not None:
                    self.refused.remove(letter)
        return letter

    def retry(self) -> None:
        """Send what is kept, if the receiver is back."""
        with self._changed:
            if not self._letters:
                return
            if self.away or self._sender is None:
                # The thread before may hang in its try for minutes; it sends nothing more.
                self.away = False
                self._start()
            self._wait(self._letters[-1])

    def unsent(self) -> list[Message]:
        """Return what was not delivered, in order, and stop trying."""
        with self._changed:
            self._sender = None
            messages = [letter.message for letter in self._letters]
            self._letters.clear()
        return messages

    def _start(self) -> None:
        context = contextvars.copy_context()
        sender = threading.Thread(target=context.run, args=(self._send,), daemon=True)
        self._sender = sender
        try:
            sender.start()
        except RuntimeError:  # the interpreter is going down, and starts no threads
            self._sender = threading.current_thread()
            self._changed.release()
            try:
                context.run(self._send)
            finally:
                self._changed.acquire()

    def _wait(self, letter: Letter) -> None:
        while not (letter.done or self.away):
            moved = partial(self._has_moved, len(self._letters))
            if not self._changed.wait_for(moved, self._patience):
                self.away, self.reason = True, f"no answer within {self._patience:g} seconds"

    def _has_moved(self, n_letters: int) -> bool:
        return self.away or len(self._letters) < n_letters

    def _send(self) -> None:
        delivering.set(True)
        me = threading.current_thread()
        while True:
            with self._changed:
                if self._sender is not me:
                    return
                if not self._letters:
                    self._sender = None
                    return
                letter = self._letters[0]
            error = self._try(letter)
            with self._changed:
                if self._sender is not me:
                    return
                if error is not None and self._is_away(error):
                    self.away, self.reason = True, str(error)
                    self._sender = None
                    self._changed.notify_all()
                    return
                self.away, letter.error, letter.done = False, error, True
                self._letters.pop(0)
                if error is not None:
                    self.refused.append(letter)
                self._changed.notify_all()

    def _try(self, letter: Letter) -> Exception | None:
        try:
            self._deliver(letter.message)
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the letter
            return error
        return None
