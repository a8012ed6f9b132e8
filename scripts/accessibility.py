"""Check of pages by axe-core in headless Chromium: what breaks WCAG's levels A and AA.

`python -m scripts.accessibility AXE PAGE ...` looks at each page in light and dark, at a desk's and
a phone's width. AXE is axe.min.js, which `npm pack axe-core` brings; a PAGE is a file, where wanted
with #run=ID or another part that its address may have.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WIDTHS, HEIGHT = (1280, 390), 900
DARK = {False: [], True: ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]}
# The page tells the frame's owner what was found; a window would be no narrower than 500 pixels.
TOLD = """addEventListener("load", () => setTimeout(async () => {
  const runOnly = {type: "tag", values: LEVELS};
  const found = await axe.run(document, {runOnly, resultTypes: ["violations"]});
  parent.postMessage(JSON.stringify(found.violations.map((one) =>
    [one.id, one.help, one.nodes.map((node) => node.target.join(" "))])), "*");
}, 1000))"""
FRAME = """<!doctype html><title>frame</title>
<script>addEventListener("message", (event) => {
  document.body.append(Object.assign(document.createElement("pre"), {textContent: event.data}));
})</script><iframe src="%s" width="%d" height="%d" style="border: 0"></iframe>"""


def violations(axe: Path, page: Path, fragment: str, width: int, dark: bool) -> list[Any]:
    """Return what axe-core, a file, finds: a rule, what it asks for, and the elements, of each.

    A copy of the page with the script in it, and without the policy that keeps scripts out, lies
    beside the page while it is looked at, so that what the page loads is found.

    Raises:
        ValueError: when Chromium shows nothing.
    """
    copy, frame = (page.with_name(f".{page.stem}.{part}.html") for part in ("axe", "frame"))
    text = re.sub("<meta http-equiv=.Content-Security-Policy[^>]*>", "", page.read_text())
    scripts = f'<script src="{axe.resolve().as_uri()}"></script>'
    # In a block, as the page has names of its own.
    scripts += f"<script>{{ const LEVELS = {json.dumps(LEVELS)};\n{TOLD} }}</script>"
    try:
        copy.write_text(text.replace("</body>", f"{scripts}</body>"))
        source = html.escape(f"{quote(copy.name)}#{fragment}")
        frame.write_text(FRAME % (source, width, HEIGHT))
        command = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
            "--virtual-time-budget=30000", f"--window-size={width},{HEIGHT}", *DARK[dark],
            frame.resolve().as_uri(),
        ]  # fmt: skip
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{page}: Chromium has shown nothing in 300 s") from error
    finally:
        copy.unlink(missing_ok=True)
        frame.unlink(missing_ok=True)
    answer = re.search("<pre>(.*?)</pre>", shown, re.DOTALL)
    if answer is None:
        raise ValueError(f"{page}: Chromium has told nothing; is {page} a page that it can open?")
    found: list[Any] = json.loads(html.unescape(answer[1]))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is found, a line each; return 1 where anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axe", type=Path, help="axe.min.js of the package axe-core")
    parser.add_argument("pages", nargs="+", metavar="page", help="an HTML file, or FILE#STATE")
    args = parser.parse_args(argv)
    if shutil.which("chromium") is None:
        parser.error("no chromium on the PATH; Debian's package of that name is enough")
    files = [(Path(name), state) for name, _, state in (page.partition("#") for page in args.pages)]
    if missing := [path for path in (args.axe, *(path for path, _ in files)) if not path.is_file()]:
        parser.error(f"{missing[0]}: there is no such file")
    try:
        return 1 if told(args.axe, files) else 0
    except ValueError as error:
        parser.error(str(error))


def told(axe: Path, files: Sequence[tuple[Path, str]]) -> int:
    """Print what axe finds on each file with its state; return how many violations there are."""
    count = 0
    for path, state in files:
        for width in WIDTHS:
            for dark in DARK:
                found = violations(axe, path, state, width, dark)
                count += len(found)
                where = f"{path}{'#' if state else ''}{state} {width} {'dark' if dark else 'light'}"
                print(f"{where}: {len(found)} violations")
                for rule, wanted, elements in found:
                    print(f"  {rule}: {wanted}: {', '.join(elements)}")
    return count


if __name__ == "__main__":
    sys.exit(main())
