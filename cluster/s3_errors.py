"""What went wrong with S3, in the user's words: transient or not, and one paragraph for each cause.

The only file that knows the error codes of S3 and the exception classes of botocore and aiohttp.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

from cluster.errors import MissingObjectError, StoreError, StoreRefusedError

__all__ = ["CONFLICT", "FAILURES", "NOT_IMPLEMENTED", "NO_UPLOAD", "PRECONDITION", "Cause", "cause_of"]

# Codes of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
PRECONDITION = {"PreconditionFailed", "412"}
CONFLICT = {"ConditionalRequestConflict", "409"}
NOT_IMPLEMENTED = {"NotImplemented", "501"}
NO_UPLOAD = {"NoSuchUpload"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_SLOW = {
    "SlowDown",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "PriorRequestNotComplete",
    "OperationAborted",
    "429",
}
_TEXTS = {
    "denied": (
        "access is denied ({code}): the credentials in use may not {action} here. Ask the bucket's owner for the "
        "right, or use other credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, an instance role)."
    ),
    "key": (
        "the credentials are wrong ({code}): the storage does not know the access key, or the secret does not go "
        "with it. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment in which "
        "this process (on a cluster: this Ray node) was started."
    ),
    "expired": (
        "the credentials have expired ({code}), or their session token is not valid. Get new ones (e.g. `aws sso "
        "login`) where this process (on a cluster: this Ray node) was started, and give the command again."
    ),
    "clock": "this machine's clock differs too much from the storage's ({code}). Set the clock.",
    "bucket": "there is no bucket {bucket!r} ({code}) at {endpoint}. Create it, or correct URI or AWS_ENDPOINT_URL.",
    "region": "the bucket {bucket!r} lives elsewhere ({code}). Set AWS_DEFAULT_REGION to its region, or the endpoint.",
    "full": "the storage has no room left ({code}). Free space, or ask for a larger quota.",
    "missing": "cannot {action}: there is no such object.",
    "none": (
        "no credentials were found ({code}). Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give "
        "the machine a role; on a cluster, in the environment in which each Ray node is started."
    ),
    "away": (
        "the storage at {endpoint} does not answer ({code}); tried for {waited_s:.0f} s to {action}. Check "
        "AWS_ENDPOINT_URL and the network; if the storage is away for longer, start again when it is back."
    ),
    "certificate": "the certificate of {endpoint} is not trusted ({code}). Set AWS_CA_BUNDLE to its authority's file.",
    "other": "cannot {action} ({code}).",
}
_KINDS = {
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"), "denied"),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "NotSignedUp"), "key"),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"), "expired"),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired"), "clock"),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), "bucket"),
    **dict.fromkeys(("PermanentRedirect", "301", "AuthorizationHeaderMalformed"), "region"),
    **dict.fromkeys(("QuotaExceeded", "StorageFull", "XMinioStorageFull", "507"), "full"),
    **dict.fromkeys(_MISSING, "missing"),
}
_REFUSED = {"denied", "key", "expired", "clock", "bucket", "region", "full", "none", "certificate"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_AWAY = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    aiohttp.ClientError,
    asyncio.TimeoutError,
    TimeoutError,
    ConnectionError,
)
FAILURES = (ClientError, BotoCoreError, aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a request may raise; s3fs turns some into an OSError that the other caused."""


class Cause:
    """One failed request: its kind, its code, and the error to raise."""

    def __init__(self, kind: str, code: str, *, transient: bool = False) -> None:
        self.kind, self.code, self.transient = kind, code, transient

    @property
    def is_bare(self) -> bool:
        """Whether this answers a HEAD request, which carries no text."""
        return self.code in ("400", "403")

    def error(self, where: str, action: str, *, bucket: str, endpoint: str, waited_s: float) -> StoreError:
        """The paragraph for the user."""
        text = _TEXTS[self.kind].format(
            code=self.code, action=action, bucket=bucket, endpoint=endpoint, waited_s=waited_s
        )
        if self.kind == "missing":
            return MissingObjectError(f"{where}: {text}")
        return (StoreRefusedError if self.kind in _REFUSED else StoreError)(f"{where}: {text}")


def cause_of(error: BaseException) -> Cause:
    """What a failed request means, from its own exception or the one that this was raised from."""
    for found in _chain(error):
        if isinstance(found, ClientError):
            return _client_cause(found)
        if isinstance(found, boto.SSLError) and "CERTIFICATE" in str(found).upper():
            return Cause("certificate", _short(found))
        if isinstance(found, _NO_CREDENTIALS):
            return Cause("none", _short(found))
        if isinstance(found, _AWAY):
            return Cause("away", _short(found), transient=True)
    return Cause("other", _short(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _client_cause(error: ClientError) -> Cause:
    answer = error.response
    code = str(answer.get("Error", {}).get("Code", "")) or "no code"
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = _KINDS.get(code)
    if kind:
        return Cause(kind, code)
    if code in _SLOW | CONFLICT or (status >= 500 and status != 501):
        return Cause("away", f"HTTP {status} {code}", transient=True)
    if code in PRECONDITION | NOT_IMPLEMENTED | NO_UPLOAD:
        return Cause("other", code)
    return Cause("other", f"HTTP {status} {code}: {answer.get('Error', {}).get('Message', '')}".rstrip(": "))


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition("?")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
