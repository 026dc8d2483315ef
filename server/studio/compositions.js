// compositions: the family, and every composition as a stack of layers.

import { at, h, later, many } from "./dom.js";
import { show as detail } from "./detail.js";
import { isThere } from "./lane.js";
import { legend, stack, swatch } from "./stack.js";
import { store, twin } from "./store.js";

const AT_ONCE = 36;
const FEW = window.innerWidth < 760 ? 6 : 14;
const SORTS = [
  ["all", "All"],
  ["pair", "Pairs"],
  ["named", "Named"],
  ["expert", "Experts"],
  ["memory", "In memory"],
];

const view = at("view-compositions");
const title = h("h1", { id: "title-compositions" }, "Compositions");
const facts = h("p", { class: "lead" });
const experts = h("ul", { class: "experts", "aria-label": "Experts" });
const allExperts = h("button", { type: "button", class: "plain", onclick: () => ((fewExperts = false), introduce(), experts.children[FEW]?.querySelector("button")?.focus()) });
const filter = h("input", { id: "filter", type: "search", placeholder: "math, sw, soup …", autocomplete: "off", spellcheck: "false", oninput: later(draw, 120) });
const sorts = h("div", { class: "choice", role: "group", "aria-label": "Which compositions" });
const found = h("p", { class: "hint", role: "status" });
const grid = h("ul", { class: "cards" });
const more = h("button", { type: "button", class: "plain more", onclick: () => extend() });

const cards = new Map();
let fewExperts = true;
let chosen = "all";
let rest = [];
let there = "";

// What is near the window is drawn, the rest when it comes near.
const near = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && extend(), { rootMargin: "400px" });

export function build() {
  for (const [sort, label] of SORTS) {
    const button = h("button", { type: "button", "aria-pressed": String(sort === chosen), onclick: () => choose(sort) }, label);
    button.dataset.sort = sort;
    sorts.append(button);
  }
  view.append(
    title,
    facts,
    experts,
    allExperts,
    h("div", { class: "toolbar" }, h("div", { class: "search" }, h("label", { for: "filter" }, "Filter"), filter), sorts, found),
    grid,
    more,
  );
  near.observe(more);
  store.addEventListener("family", () => (introduce(), cards.clear(), draw()));
  store.addEventListener("live", () => {
    const now = store.live.compositions.map((each) => each.digest).sort().join();
    if (chosen === "memory" && now !== there) draw();
    else mark();
    there = now;
  });
}

function choose(sort) {
  chosen = sort;
  for (const button of sorts.children) button.setAttribute("aria-pressed", String(button.dataset.sort === sort));
  draw();
}

function introduce() {
  const { family } = store;
  const { base } = family;
  title.textContent = family.name;
  const size = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(base.parameters);
  facts.textContent = `${base.architecture}, ${size} parameters in ${base.dtypes.join(" and ")}: ${many(base.layers, "decoder layer")}, ${many(family.experts.length, "expert")}, ${many(family.compositions.length, "composition")} of one copy of the base.`;
  const said = (expert) => [expert.kind, expert.code, ...expert.aliases].filter(Boolean).join(" · ");
  const item = (name, what) => h("li", {}, h("button", { type: "button", onclick: () => ((filter.value = name), draw(), filter.focus()) }, swatch(name, 16), h("span", { class: "name" }, name), h("span", { class: "hint" }, what)));
  const listed = fewExperts && family.experts.length > FEW + 2 ? family.experts.slice(0, FEW) : family.experts;
  allExperts.hidden = listed.length === family.experts.length;
  allExperts.textContent = `Show all ${family.experts.length} experts`;
  experts.replaceChildren(
    ...listed.map((expert) => item(expert.name, said(expert))),
    h("li", {}, h("span", { class: "flat" }, swatch("base", 16), h("span", { class: "name" }, "base"), h("span", { class: "hint" }, "what experts leave"))),
  );
}

// Words of the filter may be names, codes and aliases of experts, methods and sorts; all must be found.
function matches(composition, wanted) {
  if (chosen === "memory" ? composition.error || !isThere(composition) : chosen !== "all" && composition.sort !== chosen) return false;
  if (wanted.length === 0) return true;
  const known = store.family.experts.filter((expert) => [composition.task, composition.language].includes(expert.name));
  const text = [composition.name, composition.sort, composition.method, ...known.flatMap((expert) => [expert.code, ...expert.aliases])].join(" ").toLowerCase();
  return wanted.every((word) => text.includes(word));
}

function draw() {
  if (!store.family) return;
  const wanted = filter.value.toLowerCase().split(/[\s+]+/).filter(Boolean);
  rest = store.family.compositions.filter((composition) => matches(composition, wanted));
  const all = store.family.compositions.length;
  found.textContent = rest.length === all ? many(all, "composition") : `${rest.length.toLocaleString("en")} of ${many(all, "composition")}`;
  grid.replaceChildren();
  extend();
}

function extend() {
  const next = rest.splice(0, AT_ONCE);
  grid.append(...next.map(card));
  more.hidden = rest.length === 0;
  more.textContent = `Show ${Math.min(AT_ONCE, rest.length)} more of ${rest.length}`;
  mark();
  // The observer tells of changes alone: told again, it looks whether there is still room.
  near.unobserve(more);
  if (rest.length > 0) near.observe(more);
}

function card(composition) {
  let made = cards.get(composition.name);
  if (!made) {
    made = composition.error ? broken(composition) : whole(composition);
    cards.set(composition.name, made);
  }
  return made;
}

function broken({ name, error }) {
  return h("li", { class: "card" }, h("div", { class: "about" }, h("h2", {}, name), h("p", { class: "trouble" }, error)));
}

function whole(composition) {
  const opened = h("button", { type: "button", class: "open", onclick: () => detail(composition) }, composition.name);
  return h(
    "li",
    { class: "card", "data-digest": composition.digest },
    stack(composition, { width: 52, room: 132 }),
    h("div", { class: "about" }, h("h2", {}, opened), h("p", { class: "badges" }, h("span", { class: "badge sort" }, sortWords(composition)), h("span", { class: "badge memory", hidden: true })), twin(composition) && h("p", { class: "hint" }, `the same as ${twin(composition)}`), legend(composition, { hidden: true })),
  );
}

export function sortWords(composition) {
  const methods = { layer_swap: "layer swap", soup: "soup", table: "table" };
  if (composition.sort === "base") return "base";
  return composition.sort === "expert" ? "expert as it is" : (methods[composition.method] ?? composition.sort);
}

function mark() {
  if (!store.live) return;
  for (const shown of grid.children) {
    const badge = shown.querySelector(".badge.memory");
    if (!badge) continue;
    const found = store.isResident(shown.dataset.digest);
    badge.hidden = !found;
    if (found) badge.textContent = ["in memory", found.pinned && "pinned", found.in_flight > 0 && `${found.in_flight} in flight`].filter(Boolean).join(" · ");
    badge.classList.toggle("busy", Boolean(found?.in_flight));
  }
}
