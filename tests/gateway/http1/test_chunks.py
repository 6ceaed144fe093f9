"""Where the trailers of a chunked body begin, however its bytes arrive."""

import pytest

from gateway.http1.chunks import ChunkScanner

BODIES = {
    "empty": b"0\r\n",
    "one chunk": b"3\r\nabc\r\n0\r\n",
    "ends within chunks": b"C\r\n\r\n0\r\n\r\n\r\n\r\n\r\n0\r\n",
    "hexadecimal, with zeros": b"1a\r\n" + b"a" * 26 + b"\r\n" + b"0" * 50 + b"2\r\nab\r\n000\r\n",
    "extensions": b'2;a="' + b"0" * 50 + b'"\r\nab\r\n2;0\r\ncd\r\n0;a=b\r\n',
}


@pytest.mark.parametrize("trailers", [b"\r\n", b"X: 1\r\n\r\n"])
@pytest.mark.parametrize("name", BODIES)
def test_trailers_are_found(name: str, trailers: bytes) -> None:
    body = BODIES[name]
    data = b"head" + body + trailers + b"GET / HTTP/1.1\r\n\r\n"
    assert ChunkScanner().skip(data, 4) == 4 + len(body) - 2
    for cut in range(1, len(body)):
        scanner, found = ChunkScanner(), 0
        for start in range(4, len(data), cut):
            piece = data[start : start + cut]
            position = scanner.skip(piece, 0)
            if position < len(piece):
                found = start + position
                break
        # At the end of a piece, the line break before is that of the next one's search.
        assert 4 + len(body) - 2 <= found <= 4 + len(body)


def test_a_size_that_is_none_is_left_to_llhttp() -> None:
    assert ChunkScanner().skip(b"zz\r\nabc", 0) == 2
