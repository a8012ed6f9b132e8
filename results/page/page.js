// Sorting and filters, what a click does, and the start.

const form = document.getElementById("filters");
const SELECTS = ["task", "model", "quant", "width"];

// Numbers as numbers, what has none last in either direction. A row's first cell is its box.
function compareCells(a, b, column, sign) {
  const [left, right] = [a, b].map((row) => row.tr.cells[column + 1]);
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
  table.rows.sort((a, b) => compareCells(a, b, column, sign));
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

addEventListener("hashchange", () => location.reload());

for (const table of tables) {
  addBoxes(table);
  table.element.addEventListener("click", (event) => {
    const head = event.target.closest("thead th");
    const tr = event.target.closest("tr[data-runs]");
    if (head?.dataset.key) {
      const up = head.getAttribute("aria-sort") === "ascending";
      const direction = up ? "descending" : "ascending";
      sort(table, head.dataset.key, direction);
      remember("sort", `${table.task}.${direction}.${head.dataset.key}`);
    } else if (tr && !event.target.closest(".pick") &&
        (event.target.closest("button") || getSelection().isCollapsed)) {
      const row = table.rows.find((one) => one.tr === tr);
      toggle(row);
      if (row.panel) remember("run", row.runs[0].id);
      else if (row.runs.some((run) => run.id === state.get("run"))) remember("run");
    }
  });
  new ResizeObserver(([entry]) => {
    table.element.style.setProperty("--seen", `${entry.contentRect.width}px`);
  }).observe(table.element.parentElement);
}
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
// The task of the table, or in older links its number; the direction; the column.
const [, where, direction, key] =
  /^(.*)\.(ascending|descending)\.(.*)$/s.exec(state.get("sort") ?? "") ?? [];
const sorted = tables.find((table) => table.task === where) ?? tables[Number(where)];
if (sorted) sort(sorted, key, direction);
filter();
const wanted = state.get("run");
const asked = state.getAll("compare");
if (asked.length) {
  pickAsked(asked);
  if (!panel.hidden) panel.scrollIntoView();
}
for (const row of allRows) {
  if (wanted !== null && row.runs.some((run) => run.id === wanted)) {
    toggle(row);
    row.tr.scrollIntoView();
  }
}
