"""What a report must hold in a browser, whatever its rows say: text stays text, nothing runs, all fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Texts that try to be more than text; a script of theirs opens a dialog.
MARKUP = (
    "</script><script>alert('row')</script>",
    "<!-- <script> ]]> <![CDATA[",
    "\"><svg/onload=alert(1)> ' onmouseover='alert(1)' x='",
    "</style><style>body{display:none}</style>",
    "<plaintext><textarea></title></select></table>",
    "<base href='http://example.invalid/'><meta http-equiv=refresh content='0;url=http://example.invalid'>",
    "<a href='javascript:alert(1)'>x</a><b>bold</b><br>&lt;b&gt;&#60;script&#62; %{x} ${y}",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe><form action=//x.invalid><input name=search>",
    "W" * 3000,
    "\u202eright to left without end " + "\u2067isolated",
    "\ufdfd" * 60 + "\u0332" * 60,
    "\x1b]0;title\x07\x08\x0c\x85\u2028\u2029\ufeff\uffff",
)
# All that the template writes. A tag or attribute beyond them came out of a row.
_TAGS = """
    html head meta title style body a nav div strong main header h1 h2 h3 h4 p span section ol li
    table caption thead tbody tr th td code details summary article mark form label select option
    input button pre noscript figure figcaption script footer svg g path rect text
""".split()  # noqa: SIM905
_ATTRIBUTES = """
    lang charset name content http-equiv class href aria-label aria-hidden id tabindex role scope
    colspan hidden type value placeholder autocomplete data-copy data-state data-source data-task
    data-score data-faithful data-cluster style open disabled d x y width height rx viewBox
    stroke-width
""".split()  # noqa: SIM905
_FOREIGN = """([tags, attributes]) => {
  const found = [];
  for (const element of document.documentElement.querySelectorAll('*')) {
    const name = element.tagName.toLowerCase();
    if (!tags.includes(name)) found.push(name);
    for (const attribute of element.attributes) {
      if (!attributes.includes(attribute.name)) found.push(`${name} ${attribute.name}`);
    }
  }
  const links = [...document.links].map(link => link.getAttribute('href'));
  found.push(...links.filter(href => !/^(#|[.][.]\\/)/.test(href)).map(href => `link ${href}`));
  return [...new Set(found)];
}"""
_WIDE = """() => [...document.querySelectorAll('main *')].filter(element => {
  if (element.closest('.scroll, .plot, pre') && !element.matches('.scroll, .plot, pre')) return false;
  const box = element.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).slice(0, 5).map(e => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`)"""
_HOVER = """() => {
  const map = document.getElementById('map-0');
  if (!map) return ['there is no map'];
  const said = [];
  map.data.forEach((trace, curve) => trace.x.forEach((_, point) => {
    Plotly.Fx.hover(map, [{curveNumber: curve, pointNumber: point}]);
    const layer = map.querySelector('.hoverlayer');
    if (!layer.textContent) said.push(`no text at ${curve}/${point}`);
    for (const e of layer.querySelectorAll('a, b, img, script, foreignObject')) said.push(e.outerHTML);
  }));
  return said;
}"""


def faults(browser: Any, path: Path, widths: Sequence[int] = (400, 1280)) -> list[str]:
    """What is wrong with a report in a browser: scripts, markup and requests that rows made, and the layout.

    Args:
        browser: Of Playwright.
        widths: Of the screen, in CSS pixels.
    """
    found = _markup(browser, path)
    for width in widths:
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(120_000)
        page = context.new_page()
        _listen(page, f"file://{path}", found)
        page.goto(f"file://{path}")
        page.evaluate(
            "for (const e of document.querySelectorAll('details')) e.open = true;"
            "for (const e of document.querySelectorAll('#example-list > [hidden]')) e.hidden = false;"
        )
        across = page.evaluate("document.documentElement.scrollWidth")
        if across != width:
            found.append(f"{across} px wide on a screen of {width}")
        found += [f"at {width}: outside the screen {one}" for one in page.evaluate(_WIDE)]
        found += [f"hover {one}" for one in page.evaluate(_HOVER)]
        context.close()
    return found


def _markup(browser: Any, path: Path) -> list[str]:
    """Tags, attributes and links that rows made, in the page as written, before its script draws charts."""
    page = browser.new_page()
    page.evaluate(
        "text => { window.parsed = new DOMParser().parseFromString(text, 'text/html'); }",
        path.read_text(encoding="utf-8"),
    )
    foreign = page.evaluate(_FOREIGN.replace("document.", "window.parsed."), [_TAGS, _ATTRIBUTES])
    page.close()
    return [f"markup {one}" for one in foreign]


def _listen(page: Any, address: str, found: list[str]) -> None:
    """Adds what the page does to `found`: a dialog, an error, a request for anything but itself."""

    def on_dialog(dialog: Any) -> None:
        found.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def on_request(request: Any) -> None:
        if request.url.split("#")[0] != address:
            found.append(f"asks {request.url:.200}")

    page.on("dialog", on_dialog)
    page.on("request", on_request)
    page.on("console", lambda message: found.append(f"console {message.text[:200]}"))
    page.on("pageerror", lambda error: found.append(f"error {error!s:.200}"))
