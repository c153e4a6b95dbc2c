"""Small files, never half written under their final name."""

import os
from pathlib import Path


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside it, then rename it; line ends stay as they are.

    Args:
        path: The file; its folder exists.
        content: Text, written as UTF-8, or bytes.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(temporary, path)
