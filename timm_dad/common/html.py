"""Self-contained HTML: embedded pictures, nothing loaded from elsewhere."""

import base64
import hashlib
from html import escape

_STYLE = """
:root { color-scheme: light dark; }
@media print { :root { color-scheme: light; } }
body { font: 14px/1.5 system-ui, sans-serif; margin: 1.5rem; background: Canvas; color: CanvasText; }
section { overflow-x: auto; margin-top: 2rem; }
table { border-collapse: collapse; }
caption { text-align: left; font-weight: bold; padding-bottom: .3rem; }
th, td { padding: .2rem .6rem .2rem 0; text-align: left; vertical-align: top; font-weight: normal; }
thead th { border-bottom: 1px solid GrayText; }
"""


def html_page(title: str, body: str, style: str = '', script: str = '') -> str:
    """Return an HTML document with ``body``, ``style`` and ``script`` inserted unchanged.

    Its security policy lets a browser load nothing, and run only ``script``.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f'<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}'
        f'{f"<script>{script}</script>" if script else ""}</body>\n</html>\n'
    )


def data_url(content: bytes, kind: str = 'png') -> str:
    """Return the content of a picture file as a data URL."""
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
