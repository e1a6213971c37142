"""The command's output: written to from any thread, and a failure told once, where it can be dealt with."""

from __future__ import annotations

import errno
import io
import os
import threading

import pytest

from otel_pgpool.cli.terminal import Output, OutputError


class Stream(io.StringIO):
    """Takes what it is given until ``error`` is set."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        if self.error:
            raise self.error
        return super().write(text)


class Buffered(Stream):
    """Fails when it is flushed, as Python's stdout does."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        if self.error:
            raise self.error


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_written_arrives() -> None:
    """And `check` has nothing to say."""
    stream = Stream()
    output = Output(stream, "stdout")
    output.write("one ")
    output.write("two")
    output.check()
    assert stream.getvalue() == "one two"


@pytest.mark.parametrize("kind", [Stream, Buffered])
def test_a_failure_is_told_by_check_alone(kind: type[Stream]) -> None:
    """Whoever writes is not told, in whatever thread; `check` names the output and the reason, each time."""
    stream = kind()
    stream.error = full()
    output = Output(stream, "stderr")
    thread = threading.Thread(target=output.write, args=("lost",))
    thread.start()
    thread.join()
    for _ in range(2):
        with pytest.raises(OutputError, match=f"stderr cannot be written: {os.strerror(errno.ENOSPC)}") as failure:
            output.check()
    assert failure.value.status == 1


def test_nothing_is_written_after_a_failure() -> None:
    """What came through later would stand there without what is missing before it."""
    stream = Stream()
    output = Output(stream, "stdout")
    stream.error = full()
    output.write("lost")
    stream.error = None
    output.write("late")
    assert stream.getvalue() == ""


def test_a_reader_that_has_gone_is_no_error_to_tell() -> None:
    """The reason is empty; the status still says that not all was written."""
    stream = Stream()
    stream.error = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    output = Output(stream, "stdout")
    output.write("lost")
    with pytest.raises(OutputError, match=r"^$"):
        output.check()


def test_an_output_that_was_closed_from_the_start() -> None:
    """Python has None for it then (``>&-``)."""
    output = Output(None, "stdout")
    assert not output.isatty()
    assert output.encoding
    output.write("lost")
    with pytest.raises(OutputError, match="stdout cannot be written: "):
        output.check()
