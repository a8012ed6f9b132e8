"use strict";
// What all scripts of the page share: its data, the address, the tables' rows, and makers of elements.
// What `_run` in runs.py writes of a run, in its order.
const FIELDS = ["id", "status", "seed", "value", "seconds", "started", "made", "error", "command",
  "memory"];
const data = JSON.parse(document.getElementById("data").textContent);
data.units = JSON.parse(document.getElementById("units").textContent);
const runs = data.runs.map((members) =>
  members.map((run) => Object.fromEntries(FIELDS.map((name, i) => [name, run[i]]))));
// What the address says after its #: the filters, `sort`, `run`, which is opened, and `compare`.
const state = new URLSearchParams(location.hash.slice(1));

// What the reader does, kept in the address, so that a link shows the same.
function remember(key, ...values) {
  state.delete(key);
  for (const value of values.filter(Boolean)) state.append(key, value);
  history.replaceState(null, "", `#${state}`);
}

function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A table of heads, (text, class) each, and rows of texts or elements; the first cell of a row is its name.
function tableOf(caption, heads, lines) {
  const cell = (content, head) => make("td", { className: head[1] ?? "" }, content);
  return make("table", { className: "small" },
    make("caption", { textContent: caption }),
    make("thead", {}, make("tr", {}, ...heads.map(([text, name]) =>
      make("th", { scope: "col", textContent: text, className: name ?? "" })))),
    make("tbody", {}, ...lines.map(([first, ...rest]) => make("tr", {},
      make("th", { scope: "row" }, first), ...rest.map((content, i) => cell(content, heads[i + 1]))))));
}

// A command line that another program's words may stand in.
function commandLine(...words) {
  const quoted = words.map((word) =>
    (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`));
  return ["python -m results", ...quoted, data.option].filter(Boolean).join(" ");
}

function copyable(text) {
  const code = make("code", { textContent: text });
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
  return make("div", { className: "command" }, code, button);
}

// The settings of a row by dotted name, as text; null where it has none of that name.
function settingsOf(row) {
  const { shared, values, own } = data.settings;
  return new Map([...Object.entries(shared), ...own[row.place].map((at) => values[at])]);
}

// Options of a command that choose the row's setting; W4A8 has bits=4 and act_bits=8.
function chosenBy(row) {
  const acts = /A(\d+)$/.exec(row.width);
  const settings = [["bits", settingsOf(row).get("bits")], ...(acts ? [["act_bits", acts[1]]] : []),
    ...row.apart.map((key) => [key, row.texts.get(key)])];
  return ["--task", row.task, "--model", row.model,
    ...settings.flatMap(([key, value]) => ["--where", `${key}=${value}`])];
}

function rowOf(tr, task, keys) {
  const texts = new Map(keys.map((key, i) => [key, tr.cells[i].textContent]));
  const [model, quant, width] = ["model", "quant", "width"].map((key) => texts.get(key));
  const own = runs[tr.dataset.runs];
  const apart = keys.slice(2, keys.indexOf("width")).filter((key) => texts.get(key) !== "-");
  const words = [task, ...texts.values(), ...own.flatMap((run) => [run.id, run.error, run.command])];
  return {
    tr, runs: own, place: Number(tr.dataset.runs), task, model, quant, width, texts, apart,
    words: words.join(" ").toLowerCase(),
  };
}

const tables = [...document.querySelectorAll("table.board")].map((element) => {
  const heads = [...element.tHead.rows[0].cells];
  const keys = heads.map((head) => head.dataset.key);
  const section = element.closest("section");
  const task = section.dataset.task;
  const rows = [...element.tBodies[0].rows].map((tr) => rowOf(tr, task, keys));
  return { element, section, task, heads, keys, rows };
});
const allRows = tables.flatMap((table) => table.rows);
