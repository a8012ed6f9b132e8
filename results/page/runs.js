// The runs of a row: what each found and was made by, its units and how their losses fell.

// What `_unit` in units.py writes of a unit, in its order; from `levels` on where it has a curve.
const UNIT = ["before", "after", "heldBefore", "heldAfter", "seconds", "levels", "first", "last",
  "iteration"];
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

function facts(pairs) {
  return make("dl", {}, ...pairs.filter(([, value]) => value !== "" && value !== null)
    .map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, value))));
}

function curve(unit) {
  if (!unit.levels) return "-";
  const last = unit.levels.length - 1;
  const corners = [...unit.levels].map((level, i) =>
    `${(2 + 116 * i / last).toFixed(1)},${(26 - 24 * LEVELS.indexOf(level) / 63).toFixed(1)}`);
  return draw("svg", {
    viewBox: "0 0 120 28", class: "curve", role: "img",
    "aria-label": `Loss from ${unit.first} to ${unit.last} in ${unit.iteration} iterations`,
  }, draw("polyline", { points: corners.join(" ") }));
}

function unitTable(run, names, units) {
  const change = (before, after) => (before || after ? `${before} \u2192 ${after}` : "-");
  const held = units.some((unit) => unit.heldAfter);
  const curves = units.some((unit) => unit.levels);
  const heads = [["Unit"], ...(curves ? [["Loss, log scale"]] : []), ["Error", "number"],
    ...(held ? [["Held-out error", "number"]] : []), ["Seconds", "number"],
    ...(curves ? [["Loss", "number"]] : [])];
  const lines = units.map((unit, i) => [names[i], ...(curves ? [curve(unit)] : []),
    change(unit.before, unit.after), ...(held ? [change(unit.heldBefore, unit.heldAfter)] : []),
    unit.seconds || "-", ...(curves ? [change(unit.first, unit.last)] : [])]);
  const box = make("div", { className: "scroll", tabIndex: 0, role: "region" },
    tableOf(`In order, before \u2192 after${curves ? "; the loss is that of mini-batches" : ""}`, heads, lines));
  box.setAttribute("aria-label", `Units of ${run.id}`);
  return box;
}

// The units of a run, made when they are first looked at; nothing where it has none.
function unitsOf(row, run, open) {
  if (!Object.hasOwn(data.units.runs, run.id)) {
    if (data.units.whole || run.status !== "ok") return [];
    const words = [...chosenBy(row), "--where", `quant=${row.quant}`, "--where", `seed=${run.seed}`];
    return [make("p", { textContent: "This page has the units of newer runs alone; these are drawn by" }),
      copyable(commandLine("plot", "curves", ...words))];
  }
  const [place, told] = data.units.runs[run.id];
  if (told === undefined) return [];
  const units = told.map((unit) => Object.fromEntries(UNIT.map((name, i) => [name, unit[i]])));
  const seconds = units.reduce((sum, unit) => sum + Number(unit.seconds), 0);
  const details = make("details", { open }, make("summary", {
    textContent: `${units.length} unit${units.length === 1 ? "" : "s"}, ${seconds.toFixed(1)} s`,
  }));
  const fill = () => {
    if (details.open && details.children.length === 1) {
      details.append(unitTable(run, data.units.names[place], units));
    }
  };
  details.addEventListener("toggle", fill);
  fill();
  return [details];
}

function article(row, run, isFirst) {
  const [commit, versions, device] = data.made[run.made];
  // Where all records are lines of one file, none is a file of its own.
  const link = data.folder === null ? run.id : make("a", {
    href: `${data.folder}/${encodeURIComponent(run.id)}.json`, textContent: run.id,
  });
  const status = make("span", { textContent: run.status, className: run.status === "ok" ? "" : "bad" });
  const element = make("article", { className: run.status },
    facts([["seed", String(run.seed)], ["value", run.value], ["status", status],
      ["seconds", run.seconds], ["peak memory, GiB", run.memory], ["record", link]]),
    facts([["started", run.started], ["commit", commit], ["versions", versions], ["device", device]]));
  if (run.error) element.append(facts([["error", run.error]]));
  if (run.command === null) {
    element.append(facts([["command", "not kept by this record; its settings are in the file"]]));
  } else {
    element.append(copyable(run.command));
  }
  element.append(...unitsOf(row, run, isFirst));
  return element;
}

function toggle(row) {
  const button = row.tr.querySelector("th button");
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", open);
  if (!open) {
    row.panel.remove();
    row.panel = null;
    return;
  }
  const panel = make("div", { className: "panel" }, ...row.runs.map((run, i) => article(row, run, i === 0)));
  row.panel = make("tr", { className: "runs" },
    make("td", { colSpan: row.tr.cells.length }, panel));
  row.tr.after(row.panel);
}
