"use strict";
// What `_run` in page.py writes of a run, in its order.
const FIELDS = ["id", "status", "seed", "value", "seconds", "started", "made", "error", "command"];
const data = JSON.parse(document.getElementById("data").textContent);
const cells = data.runs.map((runs) =>
  runs.map((run) => Object.fromEntries(FIELDS.map((name, i) => [name, run[i]]))));
const form = document.getElementById("filters");
const SELECTS = ["task", "model", "quant", "width"];
// What the address says after its #: the filters, `sort`, and `run`, which is opened.
const state = new URLSearchParams(location.hash.slice(1));

const tables = [...document.querySelectorAll("table.board")].map((element) => {
  const heads = [...element.tHead.rows[0].cells];
  const keys = heads.map((head) => head.dataset.key);
  const section = element.closest("section");
  const task = section.dataset.task;
  const rows = [...element.tBodies[0].rows].map((tr) => {
    const text = (key) => tr.cells[keys.indexOf(key)].textContent;
    const runs = cells[tr.dataset.runs];
    const words = [task, ...[...tr.cells].map((cell) => cell.textContent),
      ...runs.flatMap((run) => [run.id, run.error, run.command])];
    return {
      tr, runs, task, model: text("model"), quant: text("quant"), width: text("width"),
      words: words.join(" ").toLowerCase(),
    };
  });
  return { element, section, task, heads, keys, rows };
});

function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

// Sorting: numbers as numbers, what has none last in either direction.

function compare(a, b, column, sign) {
  const [left, right] = [a, b].map((row) => row.tr.cells[column]);
  const [x, y] = [left, right].map((cell) => cell.dataset.n ?? cell.textContent);
  const missing = [left, right].map((cell) => cell.dataset.n === undefined);
  if (missing[0] !== missing[1]) return missing[0] - missing[1];
  if (x !== "" && y !== "" && isFinite(x) && isFinite(y)) return sign * (Number(x) - Number(y));
  return sign * x.localeCompare(y, "en", { numeric: true });
}

function sort(table, key, direction) {
  const column = table.keys.indexOf(key);
  if (column < 0) return;
  const sign = direction === "descending" ? -1 : 1;
  for (const head of table.heads) head.removeAttribute("aria-sort");
  table.heads[column].setAttribute("aria-sort", direction);
  table.rows.sort((a, b) => compare(a, b, column, sign));
  const body = table.element.tBodies[0];
  body.append(...table.rows.flatMap((row) => (row.panel ? [row.tr, row.panel] : [row.tr])));
}

// Filters.

function filter() {
  const chosen = SELECTS.map((key) => [key, form.elements[key].value]).filter(([, v]) => v);
  const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let [shown, all] = [0, 0];
  for (const table of tables) {
    const models = new Set();
    for (const row of table.rows) {
      const fits = chosen.every(([key, value]) => row[key] === value) &&
        words.every((word) => row.words.includes(word));
      row.tr.hidden = !fits;
      if (row.panel) row.panel.hidden = !fits;
      if (fits) models.add(row.model);
      shown += fits;
      all += 1;
    }
    table.section.hidden = models.size === 0;
    for (const figure of table.section.querySelectorAll("figure")) {
      figure.hidden = !models.has(figure.dataset.model);
    }
  }
  const method = form.elements.quant.value;
  for (const line of document.querySelectorAll("[data-quant]")) {
    line.toggleAttribute("hidden", method !== "" && line.dataset.quant !== method);
  }
  form.elements.shown.value = `${shown} of ${all} rows`;
  document.getElementById("nothing").hidden = shown > 0;
}

// The runs of a row.

function facts(pairs) {
  return make("dl", {}, ...pairs.filter(([, value]) => value !== "" && value !== null)
    .map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, value))));
}

function copying(text, code) {
  const button = make("button", { type: "button", textContent: "Copy" });
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages that came by plain http have no clipboard but this one.
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function article(run) {
  const [commit, versions, device] = data.made[run.made];
  const link = make("a", {
    href: `${data.folder}/${encodeURIComponent(run.id)}.json`, textContent: run.id,
  });
  const status = make("span", { textContent: run.status, className: run.status === "ok" ? "" : "bad" });
  const element = make("article", { className: run.status },
    facts([["seed", String(run.seed)], ["value", run.value], ["status", status],
      ["seconds", run.seconds], ["record", link]]),
    facts([["started", run.started], ["commit", commit], ["versions", versions], ["device", device]]));
  if (run.error) element.append(facts([["error", run.error]]));
  if (run.command === null) {
    element.append(facts([["command", "not kept by this record; its settings are in the file"]]));
  } else {
    const code = make("code", { textContent: run.command });
    element.append(make("div", { className: "command" }, code, copying(run.command, code)));
  }
  return element;
}

function toggle(row) {
  const button = row.tr.querySelector("button");
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", open);
  if (!open) {
    row.panel.remove();
    row.panel = null;
    return;
  }
  const panel = make("div", { className: "panel" }, ...row.runs.map(article));
  row.panel = make("tr", { className: "runs" },
    make("td", { colSpan: row.tr.cells.length }, panel));
  row.tr.after(row.panel);
}

addEventListener("hashchange", () => location.reload());

// What the reader does, kept in the address, so that a link shows the same.

function remember(key, value) {
  value ? state.set(key, value) : state.delete(key);
  history.replaceState(null, "", `#${state}`);
}

tables.forEach((table, index) => {
  table.element.addEventListener("click", (event) => {
    const head = event.target.closest("thead th");
    const tr = event.target.closest("tr[data-runs]");
    if (head) {
      const up = head.getAttribute("aria-sort") === "ascending";
      const direction = up ? "descending" : "ascending";
      sort(table, head.dataset.key, direction);
      remember("sort", `${index}.${direction}.${head.dataset.key}`);
    } else if (tr && (event.target.closest("button") || getSelection().isCollapsed)) {
      toggle(table.rows.find((row) => row.tr === tr));
    }
  });
  new ResizeObserver(([entry]) => {
    table.element.style.setProperty("--seen", `${entry.contentRect.width}px`);
  }).observe(table.element.parentElement);
});
form.addEventListener("input", (event) => {
  filter();
  remember(event.target.name, event.target.value);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => {
  filter();
  for (const key of [...SELECTS, "text"]) remember(key, "");
}));

form.hidden = false;
for (const key of [...SELECTS, "text"]) {
  const field = form.elements[key];
  field.value = state.get(key) ?? "";
  if (field.selectedIndex < 0) field.value = ""; // no longer among the options
}
const [number, direction, ...key] = (state.get("sort") ?? "").split(".");
if (tables[number]) sort(tables[number], key.join("."), direction);
filter();
const wanted = state.get("run");
for (const row of tables.flatMap((table) => table.rows)) {
  if (wanted !== null && row.runs.some((run) => run.id === wanted)) {
    toggle(row);
    row.tr.scrollIntoView();
  }
}
