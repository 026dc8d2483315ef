// memory: the bank as it is now, and the pages that the compositions in it share.

import { ago, at, bytes, h, many, s, seconds } from "./dom.js";
import { band } from "./stack.js";
import { store } from "./store.js";

const MOST_COLUMNS = 48;
const NARROW = 34;
const WIDE = 120;

const view = at("view-memory");
const meter = at("meter");
const age = h("p", { class: "hint", role: "status" });
const bar = h("div", { class: "bar" });
const key = h("ul", { class: "barkey" });
const figures = h("dl", { class: "tiles" });
const cloth = h("div", { class: "cloth", tabindex: 0, role: "region", "aria-label": "Pages of the compositions in memory" });
const clothNote = h("p", { class: "hint" });
const rows = h("tbody");
const table = h(
  "div",
  { class: "scroll", tabindex: 0, role: "region", "aria-label": "Compositions in memory" },
  h("table", { class: "list" }, h("thead", {}, h("tr", {}, ["", "composition", "pages' bytes", "shared", "in flight", "last used"].map((name) => h("th", { scope: "col" }, name || h("span", { class: "unseen" }, "number"))))), rows),
);
const empty = h("p", { class: "panel quiet" }, "No composition is in memory yet: the base is, and the first question brings one.");
const full = h("div", { class: "columns" }, h("section", { class: "panel", "aria-labelledby": "cloth-title" }, h("h2", { id: "cloth-title" }, "Shared pages"), clothNote, cloth), h("section", { class: "panel", "aria-labelledby": "list-title" }, h("h2", { id: "list-title" }, "In memory"), table));

let woven = "";

export function build() {
  view.append(h("h1", { id: "title-memory" }, "Memory"), h("p", { class: "lead" }, "The bank holds the layers that compositions have beside the base's, as pages. What two have in common is there once."), h("div", { class: "panel" }, bar, key, figures, age), empty, full);
  store.addEventListener("live", draw);
  store.addEventListener("family", () => (woven = ""));
}

function draw() {
  const { bank } = store.live;
  const used = bank.budget - bank.free;
  const share = bank.budget ? used / bank.budget : 0;
  meter.hidden = false;
  meter.replaceChildren(gauge(share), h("span", {}, `${Math.round(100 * share)}%`), h("span", { class: "wide" }, ` of ${bytes(bank.budget)} · ${store.live.compositions.length} in memory`));
  meter.setAttribute("aria-label", `Memory: ${Math.round(100 * share)}% of ${bytes(bank.budget)}, ${many(store.live.compositions.length, "composition")}`);
  if (!view.hidden) all();
}

function gauge(share) {
  return s("svg", { class: "gauge", width: 34, height: 8, viewBox: "0 0 34 8", "aria-hidden": "true" }, s("rect", { class: "rail", width: 34, height: 8, rx: 4 }), share > 0 && s("rect", { class: "fill", width: Math.max(4, 34 * Math.min(1, share)), height: 8, rx: 4 }));
}

export function all() {
  if (!store.live || !store.family) return;
  const { bank, compositions, age: old, servers } = store.live;
  const parts = [["layers", bank.bytes.layers], ["stems", bank.bytes.stems], ["packed deltas", bank.bytes.deltas], ["free", bank.free]].filter(([name, count]) => count > 0 || name !== "packed deltas");
  bar.replaceChildren(...parts.map(([name, count]) => part(name, count)));
  key.replaceChildren(...parts.map(([name, count]) => h("li", { class: `part-${name.split(" ").at(-1)}` }, h("i", {}), `${name} ${bytes(count)}`)), h("li", { class: "hint" }, `budget ${bytes(bank.budget)}, and the base's own ${bytes(bank.bytes.base)}`));
  const asked = bank.hits + bank.assemblies;
  tiles([
    ["in memory", compositions.length, many(bank.pages, "page")],
    ["saved", bytes(savedBytes()), "by sharing"],
    ["in flight", compositions.reduce((sum, each) => sum + each.in_flight, 0), bank.making ? `${bank.making} being assembled` : "requests now"],
    ["assembled", bank.assemblies, bank.assemblies ? `${seconds(bank.assembly_seconds / bank.assemblies)} each, ${seconds(bank.longest_assembly)} the longest` : "since the start"],
    ["found there", bank.hits, asked ? `${Math.round((100 * bank.hits) / asked)}% of what was asked for` : "since the start"],
    ["evicted", bank.evictions, bank.reloads ? `${many(bank.reloads, "reload")} of the family` : "since the start"],
  ]);
  age.textContent = [old > 3 ? `Nothing has changed in the engine for ${seconds(old)}.` : "", servers > 1 ? `In flight is what one of ${servers} server processes has.` : ""].filter(Boolean).join(" ");
  age.hidden = age.textContent === "";
  empty.hidden = compositions.length > 0;
  full.hidden = compositions.length === 0;
  weave();
}

function part(name, count) {
  const element = h("span", { class: `part-${name.split(" ").at(-1)}` });
  element.style.flexGrow = count;
  return element;
}

// What would be there twice if nothing were shared: what all use, less what is there.
function savedBytes() {
  const { bank, compositions } = store.live;
  const there = bank.bytes.layers + bank.bytes.stems + bank.bytes.deltas;
  return Math.max(0, compositions.reduce((sum, each) => sum + each.bytes, 0) - there);
}

function tiles(found) {
  if (figures.children.length !== found.length) figures.replaceChildren(...found.map(([name]) => h("div", {}, h("dt", {}, name), h("dd", {}), h("dd", { class: "hint" }))));
  found.forEach(([, value, hint], index) => {
    const [, number, note] = figures.children[index].children;
    number.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
    note.textContent = hint;
  });
}

// Those that are alike beside each other: a page of several neighbours is drawn as one piece.
async function weave() {
  const { compositions, now } = store.live;
  const known = (await store.plans(compositions.map((each) => each.name))).map((plan, index) => ({ plan, there: compositions[index] })).filter(({ plan }) => !plan.error);
  const order = new Map();
  const code = (blend) => order.get(JSON.stringify(blend)) ?? (order.set(JSON.stringify(blend), order.size), order.size - 1);
  for (const each of known) each.codes = [each.plan.stem, ...each.plan.layers].map(code);
  known.sort((a, b) => a.codes.reduce((found, each, index) => found || each - b.codes[index], 0));
  rows.replaceChildren(...known.map(({ plan, there }, index) => row(plan, there, index + 1, now)));
  const pattern = known.map(({ plan }) => plan.digest).join();
  if (pattern === woven || known.length === 0) return;
  woven = pattern;
  const columns = known.slice(0, MOST_COLUMNS);
  const pages = new Set(columns.flatMap(({ codes }) => codes.map((each, layer) => `${layer} ${each}`)));
  const cells = columns.length * columns[0].codes.length;
  const needed = store.live.bank.pages < pages.size ? ` The bank needs ${many(store.live.bank.pages, "page")} for them: what an expert has left as the base's needs none.` : "";
  clothNote.textContent = `A column is a composition, a row a layer, the lowest the stem. ${cells} cells are ${many(pages.size, "piece")}: what is several columns wide is in memory once.${needed}`;
  cloth.replaceChildren(picture(columns));
}

function picture(columns) {
  const depth = columns[0].plan.layers.length;
  const each = Math.max(7, Math.min(18, 300 / depth));
  const top = 18;
  const column = Math.max(NARROW, Math.min(WIDE, 480 / columns.length));
  const width = columns.length * column;
  const height = top + (depth + 1) * each + 4;
  const drawn = columns.map((_, index) => s("text", { x: index * column + column / 2 - 1, y: 11, "text-anchor": "middle" }, String(index + 1)));
  for (let layer = -1; layer < depth; layer += 1) {
    const y = layer < 0 ? height - each + 2 : top + (depth - 1 - layer) * each;
    for (let from = 0; from < columns.length; ) {
      let to = from + 1;
      while (to < columns.length && columns[to].codes[layer + 1] === columns[from].codes[layer + 1]) to += 1;
      const { plan } = columns[from];
      drawn.push(band(layer < 0 ? plan.stem : plan.layers[layer], from * column, y, (to - from) * column - 2.5, each - 2, 2));
      from = to;
    }
  }
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Pages of ${many(columns.length, "composition")}, numbered as in the table` }, drawn);
}

function row(plan, there, number, now) {
  const cells = [bytes(there.bytes), bytes(there.shared_bytes), there.in_flight, there.last_used ? ago(now - there.last_used) : "–"];
  return h("tr", {}, h("td", { class: "hint" }, number), h("th", { scope: "row" }, plan.name, there.pinned && h("span", { class: "badge" }, "pinned")), cells.map((cell) => h("td", {}, cell)));
}
