"""The page in a real browser: accessible by axe-core's rules, and no wider than a phone.

Needs Chromium (`apt-get install chromium`) and axe-core (`npm install axe-core`), whose `axe.min.js` the environment
variable AXE_CORE names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from report_runs import write_whole_run, written

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(os.environ.get("AXE_CORE", "")) if os.environ.get("AXE_CORE") else None

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(AXE is None, reason="AXE_CORE does not name axe-core's axe.min.js"),
]

CHECK = """
<script>%s</script><script>
document.querySelectorAll('details').forEach(d => d.open = true);
axe.run({resultTypes: ['violations']}).then(found => {
  const told = {violations: found.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html]),
                width: document.documentElement.scrollWidth, window: innerWidth,
                dark: matchMedia('(prefers-color-scheme: dark)').matches};
  const place = document.createElement('div'); place.id = 'told'; place.textContent = JSON.stringify(told);
  parent.document.body.append(place);
});
</script>
"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_the_page_breaks_no_rule_of_accessibility(tmp_path: Path, width: int, dark: bool) -> None:
    assert CHROMIUM
    assert AXE
    runs = [
        write_whole_run(tmp_path / name, name, rows, 10 + rows // 40)
        for name, rows in (("base", 0), ("sft", 400), ("clo", 800))
    ]
    html, _ = written(tmp_path / "out", *runs)
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)  # which would not let the check run
    html = html.replace("</body>", CHECK % AXE.read_text(encoding="utf-8") + "</body>")
    # A window of Chromium is at least 500 wide, so the page lies in a frame.
    frame = f'<!doctype html><body><iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{escape(html)}">'
    page = tmp_path / "framed.html"
    page.write_text(frame, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--virtual-time-budget=60000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    (said,) = re.findall(r'<div id="told">(.*?)</div>', dom, re.DOTALL)
    told = json.loads(unescape(said))
    assert told["violations"] == []
    assert told["dark"] == dark
    assert told["width"] <= told["window"] == width
