// Two rows of one task side by side: chosen by their boxes, kept in the address as `compare`, each
// by one of its runs, which a page that is made anew finds in whatever place its row has.

const bar = document.getElementById("picked");
const panel = document.getElementById("comparison");
let picked = []; // rows in the order of choice

function addBoxes(table) {
  const head = make("th", { scope: "col", className: "pick" },
    make("span", { className: "unseen", textContent: "Compare" }));
  table.element.tHead.rows[0].prepend(head);
  for (const row of table.rows) {
    row.box = make("input", { type: "checkbox", autocomplete: "off" });
    row.box.setAttribute("aria-label", `Compare ${titled(row)}`);
    row.box.addEventListener("change", () => pick(row, row.box.checked));
    row.tr.prepend(make("td", { className: "pick" }, row.box));
  }
}

// Of a third row, or one of another task, the rows chosen before make way.
function pick(row, isChosen) {
  const before = picked;
  picked = picked.filter((other) => other !== row && other.task === row.task);
  if (isChosen) picked = [...picked, row].slice(-2);
  for (const other of [...before, ...picked]) other.box.checked = picked.includes(other);
  remember("compare", ...picked.map((one) => one.runs[0].id));
  showPicked();
}

function showPicked() {
  const [first, second] = picked;
  bar.querySelector("[role=status]").textContent = !first ? "" : second
    ? `${titled(first, second)} against ${titled(second, first)} on ${first.task}`
    : `${titled(first)} chosen: choose another row of ${first.task} to compare it with`;
  bar.classList.toggle("unseen", !first);
  bar.querySelector("[name=show]").hidden = !second;
  bar.querySelector("[name=clear]").hidden = !first;
  panel.hidden = !second;
  if (second) {
    const { section } = tables.find((table) => table.task === first.task);
    section.querySelector(".scroll").after(panel);
    panel.replaceChildren(...comparison(first, second));
  }
}

// What a row is called; beside another one, without the model and settings that both have.
function titled(row, other) {
  const told = (key) => !other || other.texts.get(key) !== row.texts.get(key);
  return [...(told("model") ? [row.model] : []), row.quant, row.width,
    ...row.apart.filter(told).map((key) => `${key}=${row.texts.get(key)}`)].join(" ");
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (values.length - 1));
}

// As many digits as the tables show, more where two tell nothing.
function shown(value, signed) {
  const size = Math.abs(value);
  const text = size === 0 || size >= 0.1 ? size.toFixed(2) : size.toPrecision(2);
  return (value < 0 ? "-" : signed ? "+" : "") + text;
}

const finished = (row) => row.runs.filter((run) => run.status === "ok");

// The value of each seed; of several runs of one, which differ in quant.seed, their mean.
function bySeed(row) {
  const values = new Map();
  for (const run of finished(row)) {
    values.set(run.seed, [...(values.get(run.seed) ?? []), Number(run.value)]);
  }
  return new Map([...values].map(([seed, own]) => [seed, mean(own)]));
}

function pairedSeeds(first, second) {
  const [left, right] = [bySeed(first), bySeed(second)];
  return [...left.keys()].filter((seed) => right.has(seed)).sort((a, b) => a - b)
    .map((seed) => ({ seed, left: left.get(seed), right: right.get(seed),
      difference: left.get(seed) - right.get(seed) }));
}

function verdict(pairs, metric, better) {
  if (pairs.length === 0) return "No seed in common, so nothing is paired.";
  const differences = pairs.map((pair) => pair.difference);
  const spread = pairs.length > 1 ? ` \u00b1 ${shown(deviation(differences))}` : "";
  const over = pairs.length > 1
    ? `over ${pairs.length} common seeds: mean \u00b1 standard deviation of the paired difference`
    : "on the one common seed, so without a deviation";
  return `A \u2212 B: ${shown(mean(differences), true)}${spread} ${metric} ${over}; ${better}.`;
}

function costs(row) {
  const done = finished(row);
  const memory = done.map((run) => Number(run.memory)).filter((value) => value > 0);
  return [["Seconds of a run, mean", done.length ? mean(done.map((r) => Number(r.seconds))).toFixed(1) : "-"],
    ["Peak memory, GiB, largest", memory.length ? String(Math.max(...memory)) : "-"]];
}

// What the rows were computed with, where that is not the same for both.
function differing(first, second) {
  const [left, right] = [settingsOf(first), settingsOf(second)];
  const lines = [...new Set([...left.keys(), ...right.keys()])].sort()
    .map((name) => [name, left.get(name) ?? "-", right.get(name) ?? "-"]);
  const made = (row, at) => [...new Set(row.runs.map((run) => data.made[run.made][at]))].sort().join("; ");
  ["commit", "versions", "device", "full-precision network"].forEach((name, at) => {
    lines.push([name, made(first, at), made(second, at)]);
  });
  return lines.filter(([, mine, theirs]) => mine !== theirs);
}

function comparison(first, second) {
  const table = tables.find((one) => one.task === first.task);
  const [names, heads] = [[first, second], [["A", "number"], ["B", "number"]]];
  const [metric, better] = table.section.querySelector("h2 small").textContent
    .split(/, (?=(?:higher|lower) is better$)/);
  const label = (key) => table.heads[table.keys.indexOf(key)].textContent;
  const values = ["mean", "delta", "fp", "n", "failed"]
    .map((key) => [label(key), ...names.map((row) => row.texts.get(key))]);
  const [left, right] = names.map(costs);
  const spent = left.map(([name, value], i) => [name, value, right[i][1]]);
  const pairs = pairedSeeds(first, second);
  const seeds = pairs.map((pair) => [String(pair.seed), shown(pair.left), shown(pair.right),
    shown(pair.difference, true)]);
  const pairHeads = [["Seed"], ...heads, ["A \u2212 B", "number"]];
  const differences = differing(first, second);
  const parts = [
    make("h3", { id: "compared", textContent: `A: ${titled(first, second)}, B: ${titled(second, first)}` }),
    make("p", { textContent: verdict(pairs, metric, better) }),
    make("div", { className: "beside" },
      tableOf("Values and cost", [[""], ...heads], [...values, ...spent]),
      ...(pairs.length ? [tableOf("Common seeds", pairHeads, seeds)] : []),
      ...(differences.length ? [tableOf("What differs", [["Setting"], ["A"], ["B"]], differences)] : [])),
  ];
  const alike = [...first.apart, ...second.apart, "model", "width"]
    .every((key) => first.texts.get(key) === second.texts.get(key));
  if (pairs.length && first.quant !== second.quant && alike) {
    parts.push(make("p", { textContent: "Intervals and tests on the same samples:" }),
      copyable(commandLine("compare", first.quant, second.quant, ...chosenBy(first))));
  }
  return parts;
}

// What the address asks for; a run that is gone is said to be.
function pickAsked(ids) {
  const found = ids.map((id) => allRows.find((row) => row.runs.some((run) => run.id === id)));
  for (const row of found) if (row) pick(row, true);
  const gone = ids.filter((id, i) => !found[i]);
  if (gone.length) {
    bar.querySelector("[role=status]").textContent = `Not on this page: ${gone.join(", ")}`;
    bar.classList.remove("unseen");
    bar.querySelector("[name=clear]").hidden = false;
  }
}

bar.querySelector("[name=show]").addEventListener("click", () => {
  panel.scrollIntoView();
  panel.focus({ preventScroll: true });
});
bar.querySelector("[name=clear]").addEventListener("click", () => {
  for (const row of picked) row.box.checked = false;
  picked = [];
  remember("compare");
  showPicked();
});
