"""Reading bodies: the headers first, a place next, the bytes last; and nothing held once it is over."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from gradalign import MalformedRequest, Overloaded, PayloadTooLarge, UnsupportedMediaType
from gradalign_scorer.http.admission import Admission
from gradalign_scorer.http.bodies import Body, BodyReader
from gradalign_scorer.http.buffers import BufferPool
from gradalign_scorer.settings import Settings

MSGPACK, JSON = "application/msgpack", "application/json"


class Sender:
    """What uvicorn would hand to the app: chunks of a body, and then whatever follows."""

    def __init__(self, *chunks, length=None, kind=MSGPACK, pause=0.0, breaks=False):
        self.chunks, self.pause, self.breaks, self.taken = list(chunks), pause, breaks, 0
        headers = [] if kind is None else [(b"content-type", kind.encode())]
        headers += [] if length is None else [(b"content-length", str(length).encode("latin-1"))]
        self.request = Request({"type": "http", "method": "POST", "path": "/score", "headers": headers}, self.receive)

    async def receive(self):
        await asyncio.sleep(self.pause)
        if self.taken == len(self.chunks) and self.breaks:
            return {"type": "http.disconnect"}
        chunk = self.chunks[self.taken] if self.taken < len(self.chunks) else b""
        self.taken += 1
        more = self.taken < len(self.chunks) or self.breaks
        return {"type": "http.request", "body": chunk, "more_body": more}


@pytest.fixture
def admission():
    return Admission(2, 4096)


@pytest.fixture
def read(admission, monkeypatch):
    """Reads what a sender sends: content type, bytes, and what was held meanwhile."""
    for name in ("MAX_BODY_BYTES", "MAX_JSON_BYTES", "API_KEY"):
        monkeypatch.delenv(f"GRADALIGN_{name}", raising=False)
    settings = Settings(max_body_bytes=2048, max_json_bytes=1024, max_admitted_bytes=4096, body_seconds=0.2)
    reader = BodyReader(settings, admission, BufferPool(0))

    async def go(sender):
        async with reader.read(sender.request) as body:
            await body.whole()
            return body.content_type, bytes(body.data), (admission.requests, admission.bytes)

    yield lambda sender: asyncio.run(go(sender))
    assert (admission.requests, admission.bytes) == (0, 0)


@pytest.mark.parametrize("kind", [MSGPACK, "application/x-msgpack", f"{MSGPACK}; charset=binary"])
@pytest.mark.parametrize("length", [10, None])
def test_whole_bodies(read, kind, length):
    assert read(Sender(b"01234", b"", b"567", b"89", length=length, kind=kind)) == (MSGPACK, b"0123456789", (1, 10))


def test_an_empty_body(read):
    assert read(Sender(length=0)) == (MSGPACK, b"", (1, 0))
    assert read(Sender()) == (MSGPACK, b"", (1, 0))


def test_a_body_may_be_viewed_by_tensors(admission):
    reader = BodyReader(Settings(max_body_bytes=2048, max_admitted_bytes=4096), admission, BufferPool(0))

    async def go():
        async with reader.read(Sender(b"ab", length=2).request) as body:
            return body.data.readonly

    assert asyncio.run(go()) is False


@pytest.mark.parametrize(("kind", "most"), [(MSGPACK, 2048), (JSON, 1024)])
class TestLimits:
    def test_the_largest_passes(self, read, kind, most):
        assert len(read(Sender(b"x" * most, length=most, kind=kind))[1]) == most
        assert len(read(Sender(*[b"x" * 256] * (most // 256), kind=kind))[1]) == most

    def test_a_longer_one_is_refused_before_a_byte_is_read(self, read, kind, most):
        sender = Sender(b"x" * (most + 1), length=most + 1, kind=kind)
        with pytest.raises(PayloadTooLarge, match=f"{most + 1} bytes long; expected at most {most}") as caught:
            read(sender)
        assert sender.taken == 0
        assert ("GRADALIGN_MAX_JSON_BYTES" if kind == JSON else "GRADALIGN_MAX_BODY_BYTES") in str(caught.value)
        assert (f"send {MSGPACK}" in str(caught.value)) == (kind == JSON)

    def test_chunks_are_counted_as_they_come(self, read, kind, most):
        sender = Sender(*[b"x" * 256] * 100, kind=kind)
        with pytest.raises(PayloadTooLarge, match="longer than that"):
            read(sender)
        assert sender.taken == most // 256 + 1


def test_json_may_not_be_larger_than_any_body(admission):
    reader = BodyReader(Settings(max_body_bytes=1024, max_admitted_bytes=4096), admission, BufferPool(0))

    async def go():
        async with reader.read(Sender(length=1025, kind=JSON).request):
            pass

    with pytest.raises(PayloadTooLarge, match="at most 1024"):
        asyncio.run(go())


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/msgpackx", "multipart/form-data; boundary=x"])
def test_other_types_are_refused_before_a_byte_is_read(read, kind):
    sender = Sender(b"x", length=1, kind=kind)
    with pytest.raises(UnsupportedMediaType) as caught:
        read(sender)
    assert (sender.taken, caught.value.param) == (0, "Content-Type")


@pytest.mark.parametrize("length", ["-1", "1.5", "", "0x10", "\u00b2", "1, 1"])
def test_a_length_that_is_no_number(read, length):
    with pytest.raises(MalformedRequest, match="expected a number of bytes"):
        read(Sender(b"x", length=length))


@pytest.mark.parametrize(("length", "chunks"), [(5, [b"abc"]), (3, [b"ab", b"cde"])])
def test_a_length_that_was_not_kept(read, length, chunks):
    with pytest.raises(MalformedRequest, match=f"Content-Length is {length} and {sum(map(len, chunks))} bytes came"):
        read(Sender(*chunks, length=length))


@pytest.mark.parametrize("length", [1000, None])
def test_a_sender_that_stalls(read, length):
    with pytest.raises(MalformedRequest, match=r"no more of the body came for 0\.2 s"):
        read(Sender(b"x", b"y", length=length, pause=5))


@pytest.mark.parametrize("length", [1000, None])
def test_a_sender_that_goes_away(read, length):
    with pytest.raises(ClientDisconnect):
        read(Sender(b"x", length=length, breaks=True))


def test_a_slow_sender_that_keeps_sending_is_waited_for(read):
    assert read(Sender(*[b"x"] * 8, length=8, pause=0.05))[1] == b"x" * 8


def test_what_others_hold_is_not_given_twice(read, admission):
    with admission.admit() as other:
        other.claim(3000)
        for sender in (Sender(b"x" * 2000, length=2000), Sender(*[b"x" * 500] * 4)):
            with pytest.raises(Overloaded, match=r"holds [34]000 bytes of other requests and"):
                read(sender)
            assert (admission.requests, admission.bytes) == (1, 3000)


def test_no_place_means_no_reading(read, admission):
    sender = Sender(b"x", length=1)
    with admission.admit(), admission.admit(), pytest.raises(Overloaded, match="holds 2 requests"):
        read(sender)
    assert sender.taken == 0


class TestDigests:
    def digest(self, data, kind=MSGPACK):
        return Body(kind, memoryview(data)).digest()

    def test_of_equal_bytes(self):
        assert self.digest(b"abc") == self.digest(bytearray(b"abc"))
        assert len(self.digest(b"")) == 16

    @pytest.mark.parametrize("place", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 7, (3 << 20) - 1])
    def test_of_bytes_that_differ_in_one_bit(self, place):
        data = bytearray(3 << 20)
        before = self.digest(data)
        data[place] ^= 1
        assert self.digest(data) != before

    def test_of_another_length(self):
        assert len({self.digest(bytes(n)) for n in (0, 1, 2, 1 << 20, (1 << 20) + 1)}) == 5
