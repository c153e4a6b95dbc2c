"""Errors of object stores and of the way to them, in one line: their packages share no base class."""

import re
from collections.abc import Mapping

NO_BUCKET = 'there is no such bucket: check the name, or create it first'
_REFUSED = ('AccessDenied', 'InvalidAccessKeyId', 'SignatureDoesNotMatch', 'ExpiredToken', 'InvalidToken', '401', '403')
_TAKEN = ('PreconditionFailed', 'ConditionalRequestConflict', '409', '412')


class StoreError(ValueError):
    """An error of a store or of the way to it, with advice."""


def code_of(error: BaseException | None) -> str:
    """Return the store's code of an error (``NoSuchBucket``, ``403``), if it has one."""
    while error is not None:
        response = getattr(error, 'response', None)
        if isinstance(response, Mapping):  # botocore's
            return str(response.get('Error', {}).get('Code', ''))
        if (code := getattr(error, 'code', None)) is not None:  # gcsfs's
            return str(code)
        error = error.__cause__
    return ''


def is_taken(error: BaseException | None) -> bool:
    """Return whether an object could not be created because it exists."""
    return isinstance(error, FileExistsError) or code_of(error) in _TAKEN


def advice(error: Exception) -> str:
    """Format an error, and what to do about it."""
    code, kind = code_of(error), type(error).__name__
    said = f'{code or kind}: {" ".join(str(error).split())[:300]}'
    if code == 'NoSuchBucket':
        return NO_BUCKET
    if code == 'RequestTimeTooSkewed':
        return f"this machine's clock is off by too much for the store ({said}): set it"
    if re.search('Credential|Token|Auth', kind):
        return f'there are no credentials ({said}): set them (for s3:// AWS_PROFILE, or AWS_ACCESS_KEY_ID)'
    if isinstance(error, PermissionError) or code in _REFUSED or str(error).startswith('Forbidden'):
        return f'access is denied ({said}): check the credentials and their permissions there'
    if isinstance(error, TimeoutError | ConnectionError) or re.search('Connect|Timeout|Endpoint|DNS|Proxy', kind):
        return (
            f'the store cannot be reached ({said}): check the network and the address (for s3:// other than '
            "Amazon's, AWS_ENDPOINT_URL), and start the same command again to continue"
        )
    return (
        f'the store refuses ({said}): once that is fixed (space, quota, permissions), start the same command again to '
        'continue; files get their final names only when complete'
    )
