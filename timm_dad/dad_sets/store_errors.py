"""What object stores, and the way to them, say: errors of packages that have no kind in common, in one line."""

import re
from collections.abc import Mapping

NO_BUCKET = 'there is no such bucket: look at the name, or make it first'
_REFUSED = ('AccessDenied', 'InvalidAccessKeyId', 'SignatureDoesNotMatch', 'ExpiredToken', 'InvalidToken', '401', '403')
_TAKEN = ('PreconditionFailed', 'ConditionalRequestConflict', '409', '412')


class StoreError(ValueError):
    """What a store, or the way to it, says; and what to do."""


def code_of(error: BaseException | None) -> str:
    """The store's code of an error (``NoSuchBucket``, ``403``), if it has one."""
    while error is not None:
        response = getattr(error, 'response', None)
        if isinstance(response, Mapping):  # botocore's
            return str(response.get('Error', {}).get('Code', ''))
        if (code := getattr(error, 'code', None)) is not None:  # gcsfs's
            return str(code)
        error = error.__cause__
    return ''


def is_taken(error: BaseException | None) -> bool:
    """Whether an object could not be created because there is one."""
    return isinstance(error, FileExistsError) or code_of(error) in _TAKEN


def advice(error: Exception) -> str:
    """What an error says, and what to do."""
    code, kind = code_of(error), type(error).__name__
    said = f'{code or kind}: {" ".join(str(error).split())[:300]}'
    if code == 'NoSuchBucket':
        return NO_BUCKET
    if code == 'RequestTimeTooSkewed':
        return f"this machine's clock is off by too much for the store ({said}): set it"
    if re.search('Credential|Token|Auth', kind):
        return f'there are no credentials ({said}): set them (for s3:// AWS_PROFILE, or AWS_ACCESS_KEY_ID)'
    if isinstance(error, PermissionError) or code in _REFUSED or str(error).startswith('Forbidden'):
        return f'access is denied ({said}): look at the credentials, and what they may do there'
    if isinstance(error, TimeoutError | ConnectionError) or re.search('Connect|Timeout|Endpoint|DNS|Proxy', kind):
        return (
            f'the store cannot be reached ({said}): look at the network and the address (for s3:// that is not '
            "Amazon's, AWS_ENDPOINT_URL), and start the same command again, it goes on"
        )
    return (
        f'the store says no ({said}): once that is mended (room, quota, rights), start the same command again, it goes '
        'on; nothing half-written has a final name'
    )
