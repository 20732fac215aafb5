"""A server that says what it is told to, byte for byte, whatever it is asked."""

import contextlib
import socket
import threading


@contextlib.contextmanager
def answering(*answers):
    """Port of a server that gives each connection the next of `answers`, the last for ever, and closes it."""
    left = list(answers)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(8)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(left.pop(0) if len(left) > 1 else left[0])
                # A socket that is closed with something unread resets what it has sent.
                connection.settimeout(1)
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
