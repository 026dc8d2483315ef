// change: how far each expert is from the base, layer by layer.

import { get, lines } from "./api.js";
import { at, bytes, h, many } from "./dom.js";
import { show as askIt } from "./ask.js";
import { swatch } from "./stack.js";
import { store } from "./store.js";

const STEPS = 9;
const FEW = 6;
const KINDS = ["attention", "mlp", "norm"];

const view = at("view-change");
const note = h("p", {});
const measure = h("button", { type: "button", class: "main", onclick: start }, "Measure it");
const progress = h("progress", { max: 1, "aria-label": "Measuring", hidden: true });
const trouble = h("p", { class: "trouble", role: "alert", hidden: true });
const offer = h("div", { class: "panel offer", hidden: true }, note, h("div", { class: "actions" }, measure, progress), trouble);
const maps = h("div", { class: "maps" });
const whole = h("button", { type: "button", "aria-pressed": "true", onclick: () => detailed(false) }, "By kind of module");
const each = h("button", { type: "button", "aria-pressed": "false", onclick: () => detailed(true) }, "Every module");
const scale = h("p", { class: "scale hint" });
const pair = h("select", { id: "pair", onchange: suggest });
const proposal = h("div", { class: "proposal", "aria-live": "polite" });
const split = h("section", { class: "panel split", "aria-labelledby": "split-title" }, h("h2", { id: "split-title" }, "A split to try"), h("div", { class: "field" }, h("label", { for: "pair" }, "Pair"), pair), proposal);
const rest = h("button", { type: "button", class: "plain more", onclick: () => ((everyExpert = true), draw(known)) });
const measured = h("div", { class: "measured" }, maps, rest, split);
const shown = h("div", { hidden: true }, h("div", { class: "toolbar" }, h("div", { class: "choice", role: "group", "aria-label": "Rows" }, whole, each), scale), measured);

let known = null;
let all = false;
let everyExpert = false;
let asked = false;

export function build() {
  view.append(h("h1", { id: "title-change" }, "Where experts change"), h("p", { class: "lead" }, "How far an expert is from the base, layer by layer: the norm of the difference in percent of the norm of what was there, ‖E − B‖ ∕ ‖B‖."), offer, shown);
  store.addEventListener("family", () => {
    known = null;
    asked = false;
    if (!view.hidden) enter();
  });
}

// What is known is shown; nothing is measured before somebody asks.
export async function enter() {
  if (asked || !store.family) return;
  asked = true;
  try {
    const said = await get("studio/changes");
    const count = many(store.family.experts.length, "expert");
    note.textContent =
      said.bytes > 0
        ? `To know, the server reads ${bytes(said.bytes)}: the files of the experts that are no archives, and the base's beside them. It does so once for this family, on one thread that gives way to requests; the disk and memory bandwidth are shared with them.`
        : `All of ${count} are archives, which have written down how far they are from the base: a moment.`;
    if (said.changes) draw(said.changes);
    else if (said.running) start();
    else waiting();
  } catch (error) {
    asked = false;
    fail(error.message);
  }
}

function waiting() {
  offer.hidden = measure.hidden = false;
  progress.hidden = shown.hidden = true;
}

function fail(reason) {
  waiting();
  trouble.textContent = reason;
  trouble.hidden = false;
}

async function start() {
  offer.hidden = progress.hidden = false;
  measure.hidden = trouble.hidden = true;
  progress.removeAttribute("value");
  try {
    let last = {};
    for await (const line of lines("studio/changes")) {
      last = line;
      if (line.done > 0) progress.value = line.done;
    }
    if (last.changes) draw(last.changes);
    else fail(last.error ?? "The server ended before it had measured all.");
  } catch (error) {
    fail(error.message);
  }
}

function detailed(wanted) {
  all = wanted;
  whole.setAttribute("aria-pressed", String(!all));
  each.setAttribute("aria-pressed", String(all));
  draw(known);
}

function draw(changes) {
  known = changes;
  offer.hidden = true;
  shown.hidden = false;
  const grids = changes.experts.map((expert) => (all ? expert.change : byKind(changes.modules, expert.change)));
  const names = all ? changes.modules.map((module) => module.name) : KINDS.filter((kind) => changes.modules.some((module) => module.kind === kind));
  const most = Math.max(0, ...grids.flat(2).filter((value) => value !== null));
  scale.replaceChildren("0", ...Array.from({ length: STEPS }, (_, step) => h("i", { class: `heat-${step + 1}` })), percent(most), " · blank is the base's, bit by bit");
  measured.classList.toggle("few", store.family.base.layers <= (all ? 8 : 12));
  const experts = everyExpert ? changes.experts : changes.experts.slice(0, FEW);
  rest.hidden = experts.length === changes.experts.length;
  rest.textContent = `Show all ${changes.experts.length} experts`;
  maps.replaceChildren(...experts.map((expert, index) => map(expert, names, grids[index], most)));
  const pairs = store.family.compositions.filter((composition) => composition.sort === "pair");
  split.hidden = pairs.length === 0 || store.family.base.layers < 3;
  if (split.hidden) return;
  const before = pair.value;
  pair.replaceChildren(...pairs.map(({ name }) => h("option", { value: name }, name)));
  if (before) pair.value = before;
  suggest();
}

// Of several modules the root of the mean square.
function byKind(modules, change) {
  const kinds = KINDS.filter((kind) => modules.some((module) => module.kind === kind));
  return kinds.map((kind) => {
    const rows = change.filter((_, index) => modules[index].kind === kind);
    return rows[0].map((_, layer) => {
      const found = rows.map((row) => row[layer]);
      return found.includes(null) ? null : Math.sqrt(found.reduce((sum, value) => sum + value * value, 0) / found.length);
    });
  });
}

// Two digits, or all before the point.
const number = (value) => (value >= 10 ? Math.round(value).toLocaleString("en") : value >= 0.01 ? Number(value.toPrecision(2)).toString() : value.toExponential(0));

const percent = (value) => `${number(100 * value)}%`;

function map(expert, names, grid, most) {
  const layers = grid[0] ?? [];
  const stem = Object.entries(expert.stem).map(([name, value]) => `${name.split(".").at(-1)} ${value === null ? "not finite" : percent(value)}`);
  const size = expert.stored === "archive" ? `archive of ${bytes(expert.bytes)}` : `${expert.stored}, ${bytes(expert.bytes)} differ`;
  const cell = (value) => {
    if (value === null) return h("td", { class: "odd", title: "not finite" }, "×");
    if (value === 0) return h("td", { class: "none" }, h("span", { class: "unseen" }, "0"));
    return h("td", { class: `heat-${Math.max(1, Math.ceil((STEPS * value) / most))}`, title: percent(value) }, number(100 * value));
  };
  return h(
    "section",
    { class: "panel map" },
    h("h2", {}, swatch(expert.name, 14), expert.name, h("span", { class: "hint" }, ` ${size}; stem: ${stem.join(", ") || "not changed"}`)),
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": `Change of ${expert.name}` },
      h(
        "table",
        { class: "heat" },
        h("caption", { class: "unseen" }, `Change of ${expert.name} in percent, by module and layer`),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "layer"), layers.map((_, layer) => h("th", { scope: "col" }, layer)))),
        h("tbody", {}, names.map((name, index) => h("tr", {}, h("th", { scope: "row" }, name), grid[index].map(cell)))),
      ),
    ),
  );
}

async function suggest() {
  const wanted = pair.value;
  try {
    const found = await get(`studio/suggestion?${new URLSearchParams({ name: wanted })}`);
    if (pair.value !== wanted) return;
    const tryIt = h("button", { type: "button", class: "plain", onclick: () => askIt(wanted, found) }, "Try it");
    proposal.replaceChildren(
      h("p", { class: "made" }, h("code", { class: "name" }, found.name), store.family.takes_recipes && tryIt),
      ...found.reasoning.split("\n").map((line) => h("p", {}, line)),
    );
  } catch (error) {
    proposal.replaceChildren(h("p", { class: "trouble" }, error.message));
  }
}
