// detail: one composition layer by layer, and what it takes.

import { post } from "./api.js";
import { ago, at, bytes, h } from "./dom.js";
import { show as askIt } from "./ask.js";
import { blendWords, isUniform, mixtureWords, runs, span, stack, swatch } from "./stack.js";
import { store, twin } from "./store.js";

const dialog = at("detail-dialog");
let shown = null;
let admin = "";

export function show(composition) {
  shown = composition;
  draw();
  dialog.showModal();
}

export function build() {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => (shown = null));
  store.addEventListener("live", () => shown && dialog.open && memory.fill());
}

function draw() {
  const { name } = shown;
  const ask = h("button", { type: "button", class: "main", onclick: () => (dialog.close(), askIt(name)) }, "Ask it");
  dialog.replaceChildren(
    h("header", {}, h("h2", { id: "detail-title" }, name), h("button", { type: "button", class: "plain icon", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
    h("div", { class: "detail" }, stack(shown, { width: 92, room: 300, most: 26, least: 9 }), h("div", { class: "facts" }, table(shown), facts(shown))),
    memory.make(),
    h("footer", {}, memory.buttons, ask),
  );
  memory.fill();
}

function table(composition) {
  const row = (where, blend) => {
    const kinds = isUniform(blend) ? [["", blend.all]] : Object.entries(blend);
    const said = kinds.map(([kind, weights]) => h("div", {}, swatch({ all: weights }, 11), kind && h("span", { class: "hint" }, kind), mixtureWords(weights)));
    return h("tr", {}, h("th", { scope: "row" }, where), h("td", {}, said));
  };
  return h(
    "table",
    { class: "layers-table" },
    h("caption", { class: "unseen" }, "Layers, the last at the top"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "layers"), h("th", { scope: "col" }, "come from"))),
    h("tbody", {}, runs(composition).reverse().map((run) => row(span(run), run.blend)), row("stem", composition.stem)),
  );
}

function facts(composition) {
  const found = [
    twin(composition) && ["weights", `the same as ${twin(composition)}'s`],
    ["digest", h("code", { title: composition.digest }, composition.digest.slice(0, 12))],
    composition.residency === "delta" && ["kept as", "packed deltas where it can be"],
    ["stem", `${blendWords(composition.stem)}: embeddings, final norm, output head`],
  ];
  return h("dl", { class: "figures tall" }, found.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

const memory = {
  make() {
    this.said = h("p", { class: "lead" });
    this.trouble = h("p", { class: "trouble", role: "alert", hidden: true });
    this.key = h("input", { id: "admin-key", type: "password", autocomplete: "off", value: admin });
    this.asks = h("form", { class: "field", hidden: true, onsubmit: (event) => (event.preventDefault(), this.change(this.verb)) }, h("label", { for: "admin-key" }, "Admin key"), this.key);
    this.load = h("button", { type: "button", class: "plain", onclick: () => this.change("load") }, "Bring into memory");
    this.unload = h("button", { type: "button", class: "plain", onclick: () => this.change("unload") }, "Let go of it");
    this.buttons = h("span", { class: "changes" }, this.load, this.unload);
    return h("div", { class: "memory-of" }, this.said, this.trouble, this.asks);
  },
  fill() {
    const { live } = store;
    const there = store.isResident(shown.digest);
    const base = shown.digest === store.byName.get("base")?.digest;
    this.buttons.hidden = !live || base;
    this.load.hidden = Boolean(there);
    this.unload.hidden = !there || there.pinned;
    if (!live) return;
    if (base) this.said.textContent = "The base is always in memory.";
    else if (!there) this.said.textContent = "Not in memory: the first request for it has its layers assembled.";
    else {
      const all = there.shared_bytes === there.bytes ? "all of them" : `${bytes(there.shared_bytes)} of them`;
      const shared = there.shared_bytes ? `, ${all} in pages that others use, too` : "";
      const used = there.last_used ? ` Last used ${ago(live.now - there.last_used)}.` : "";
      this.said.textContent = `In memory${there.pinned ? " and pinned" : ""}: ${bytes(there.bytes)}${shared}. ${there.in_flight} in flight.${used}`;
    }
  },
  async change(verb) {
    const { name } = shown;
    this.verb = verb;
    admin = this.key.value.trim();
    this.load.disabled = this.unload.disabled = true;
    this.trouble.hidden = true;
    try {
      await post(`v1/${verb}_lora_adapter`, { lora_name: name }, { headers: admin ? { "X-Admin-Key": admin } : {} });
      this.asks.hidden = true;
    } catch (error) {
      this.trouble.textContent = error.message;
      this.trouble.hidden = false;
      if (error.status === 403) {
        this.asks.hidden = false;
        this.key.focus();
      }
    } finally {
      this.load.disabled = this.unload.disabled = false;
      await store.look();
    }
  },
};
