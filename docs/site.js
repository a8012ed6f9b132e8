"use strict";
// What scrolls sideways can be reached, and so scrolled, by the keyboard.
function reachable() {
  for (const box of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);

// Pictures follow the colours that the reader has chosen, which may not be the system's.
function matched() {
  const dark = document.body.dataset.mdColorScheme === "slate";
  for (const source of document.querySelectorAll("picture > source")) {
    source.media = dark ? "all" : "not all";
  }
}
matched();
new MutationObserver(matched).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
