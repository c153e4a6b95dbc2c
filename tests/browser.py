"""Pages in a real browser, headless Chromium: each at two widths, in frames of a page whose script looks at them."""

import html
import json
import re
import shutil
import subprocess

import pytest

WIDTHS = (360, 1280)
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium: apt-get install chromium')
_HOST = """<!DOCTYPE html><meta charset="utf-8"><body>{frames}<script>
const probe = (window, document) => {{ {probe} }};
addEventListener('load', () => {{
  const found = [...document.querySelectorAll('iframe')].map(f => probe(f.contentWindow, f.contentDocument));
  document.body.textContent = JSON.stringify(found);
}});
</script></body>"""


def look_at(page, tmp_path, probe):
    """What the JavaScript ``probe`` returns of the page's ``window`` and ``document`` at each width, and the console.

    The page is as it is, with its policy: the script is of the page around it, since no window is as narrow as 360.
    """
    text = html.escape(page.read_text())
    frames = ''.join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{text}"></iframe>' for width in WIDTHS
    )
    host = tmp_path / 'host.html'
    host.write_text(_HOST.format(frames=frames, probe=probe))
    flags = ('--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--window-size=1700,1000')
    command = [CHROMIUM, *flags, f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', host.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    body = re.search('<body>(.*)</body>', done.stdout, re.DOTALL)
    assert body, done.stderr
    return json.loads(html.unescape(body[1])), [line for line in done.stderr.splitlines() if ':CONSOLE' in line]
