"""Messages over a TCP connection.

Whoever connects shows a secret first, because anybody on the machine may find the port.
"""

import secrets
import select
import socket
import time

from longcat.serve.disaggregation.frames import Unframe, frame
from longcat.serve.disaggregation.messages import Message
from longcat.serve.disaggregation.transport import Broken

SECRET_BYTES = 16


class TcpSender:
    """Connects to (host, port) and shows the secret."""

    def __init__(self, address: tuple[str, int], secret: bytes) -> None:
        self._socket = socket.create_connection(address, timeout=30.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(secret)
        self._socket.settimeout(None)

    def send(self, message: Message) -> None:
        """Returns when the system has taken all of it."""
        try:
            self._socket.sendall(frame(message))
        except OSError as error:
            raise Broken(f"the receiver is gone: {error}") from None

    def close(self) -> None:
        """Close the connection; what was sent arrives."""
        self._socket.close()


class TcpReceiver:
    """Listens on a free port of `host`, and receives from the one who knows the secret."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._listener = socket.create_server((host, 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._socket: socket.socket | None = None
        self._bytes = Unframe()

    def sender(self) -> "TcpEnd":
        """What the other process needs in order to send here; can be pickled."""
        return TcpEnd(self.address, self.secret)

    def receive(self, seconds: float = 0.0) -> Message | None:
        """The next whole message; None too while nobody has connected."""
        end = time.monotonic() + seconds
        while True:
            message = self._bytes.next()
            if message is not None:
                return message
            waited_for = self._socket or self._listener
            ready, _, _ = select.select([waited_for], [], [], max(end - time.monotonic(), 0.0))
            if not ready:
                return None
            if self._socket is None:
                self._accept()
            else:
                self._fill(self._socket)

    def _accept(self) -> None:
        connected, _ = self._listener.accept()
        connected.settimeout(1.0)
        try:
            shown = connected.recv(SECRET_BYTES, socket.MSG_WAITALL)
        except OSError:
            shown = b""
        if secrets.compare_digest(shown, self.secret):
            self._socket = connected
        else:
            connected.close()

    def _fill(self, connected: socket.socket) -> None:
        try:
            data = connected.recv(2**20)
        except OSError as error:
            raise Broken(f"the sender is gone: {error}") from None
        if not data:
            raise Broken("the sender is gone")
        self._bytes.feed(data)

    def close(self) -> None:
        """Close the connection and the port."""
        self._listener.close()
        if self._socket is not None:
            self._socket.close()


class TcpEnd:
    """Where to connect, and what to show."""

    def __init__(self, address: tuple[str, int], secret: bytes) -> None:
        self._address = address
        self._secret = secret

    def open(self) -> TcpSender:
        """Connect."""
        return TcpSender(self._address, self._secret)
