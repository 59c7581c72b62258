"""What S3 refuses and what goes away for a while, on a real server."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from cluster import s3 as module
from cluster.errors import MissingObjectError, StoreError
from cluster.s3_errors import cause_of
from cluster.store import open_store
from tests.seaweed import S3Server


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, r"credentials are wrong \(SignatureDoesNotMatch\)"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, r"credentials are wrong \(InvalidAccessKeyId\)"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found"),
        ({"AWS_PROFILE": "none-such"}, "no credentials were found"),
    ],
)
def test_wrong_credentials_are_said_at_once(
    s3: str, environment: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tried again; the error names the place, the reason and the settings, never a secret."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started_s = time.monotonic()
    for ask in (lambda: open_store(s3).exists("x"), lambda: open_store(s3).create("x", b"1")):
        with pytest.raises(StoreError, match=text) as caught:
            ask()
        assert s3 in str(caught.value)
    assert time.monotonic() - started_s < 15


def test_a_missing_bucket_is_no_missing_object(s3: str) -> None:
    """A reader is told which of the two it is."""
    with pytest.raises(StoreError, match="no bucket 'no-such-bucket'"):
        open_store("s3://no-such-bucket/x").exists("y")
    open_store(s3).write("x", b"1")
    with pytest.raises(MissingObjectError, match="no such object"):
        open_store(s3).read("y")


def test_a_server_that_is_not_there_is_tried_for_a_while(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning when it begins to matter, one error at the end."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match=r"127\.0\.0\.1:1 does not answer .* tried"):
        open_store(s3, retry_s=8).read("x")
    assert len([record for record in caplog.records if "trying for 8 s" in record.message]) == 1


def test_a_server_away_for_some_seconds_is_waited_for(
    s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen in the middle, it costs time and nothing else; requests that time out are repeated."""
    monkeypatch.setitem(module._CONFIG, "read_timeout", 1)
    monkeypatch.setattr(module, "_connections", {})
    store = open_store(s3)
    store.write("x", b"1")
    s3_server.freeze()
    back = threading.Timer(3, s3_server.thaw)
    back.start()
    try:
        assert store.read("x") == b"1"
        assert (store.create("new", b"mine"), store.create("new", b"other")) == (True, False)
    finally:
        back.join()
        s3_server.thaw()


@pytest.mark.slow
def test_a_server_killed_and_started_again_has_everything(s3: str, s3_server: S3Server) -> None:
    """kill -9 of the server; a read begun meanwhile ends well."""
    store = open_store(s3)
    store.write("x", b"1")
    s3_server.stop(kill=True)
    starting = threading.Thread(target=s3_server.start)
    starting.start()
    assert store.read("x") == b"1"
    starting.join()
    store.write("x", b"2")


def test_without_conditional_writes_one_of_two_still_wins(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that ignores the condition is found out once, said once, and claims are settled by re-reading."""
    monkeypatch.setattr(module, "_honours", {})
    monkeypatch.setattr(module.S3Store, "_try_conditions", lambda self: False)
    store, won = open_store(s3), []
    with caplog.at_level(logging.WARNING):
        threads = [
            threading.Thread(target=lambda n=n: store.create("k", bytes([n])) and won.append(n)) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [store.read("k")] == [bytes([n]) for n in won]
    assert len([record for record in caplog.records if "conditional writes" in record.message]) == 1


@pytest.mark.parametrize(
    ("code", "status", "kind", "transient"),
    [
        ("AccessDenied", 403, "denied", False),
        ("ExpiredToken", 400, "expired", False),
        ("InvalidToken", 400, "expired", False),
        ("RequestTimeTooSkewed", 403, "clock", False),
        ("NoSuchKey", 404, "missing", False),
        ("NoSuchBucket", 404, "bucket", False),
        ("SlowDown", 503, "away", True),
        ("InternalError", 500, "away", True),
        ("NotImplemented", 501, "other", False),
        ("PreconditionFailed", 412, "other", False),
        ("MalformedXML", 400, "other", False),
    ],
)
def test_each_answer_has_its_meaning(code: str, status: int, kind: str, transient: bool) -> None:
    """Denied, expired and missing are three things; only what may pass is tried again."""
    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    wrapped = OSError("as s3fs raises it")
    wrapped.__cause__ = ClientError(answer, "GetObject")
    cause = cause_of(wrapped)
    assert (kind, transient) == (cause.kind, cause.transient)
    text = str(cause.error("s3://b/k", "read", bucket="b", endpoint="e", waited_s=1.0))
    assert text.startswith("s3://b/k: ")


class _Parts:
    """A store that keeps what a writer sends it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.whole: bytes | None = None

    def _key(self, key: str) -> str:
        return key

    def write(self, key: str, data: bytes) -> None:
        self.whole = bytes(data)

    def _call(self, method: str, action: str, key: str, **options: Any) -> dict[str, Any]:
        if method == "upload_part":
            self.parts.append(bytes(options["Body"]))
            assert len(self.parts) == options["PartNumber"]
        return {"UploadId": "u", "ETag": "e"}


@given(pieces=st.lists(st.binary(max_size=35), max_size=12))
def test_a_writer_sends_whole_parts_in_order(pieces: list[bytes]) -> None:
    """However the bytes come in pieces: all parts but the last are of one size, and together they are the bytes."""
    store = _Parts()
    with mock.patch.object(module, "_PART_BYTES", 10):
        writer = module._Writer(store, "k")  # type: ignore[arg-type]
        for piece in pieces:
            assert len(piece) == writer.write(memoryview(piece))
        writer.close()
    together = b"".join(pieces)
    if len(together) <= 10:
        assert (together, []) == (store.whole, store.parts)
    else:
        assert [10] * (len(store.parts) - 1) == [len(part) for part in store.parts[:-1]]
        assert 0 < len(store.parts[-1]) <= 10
        assert together == b"".join(store.parts)
