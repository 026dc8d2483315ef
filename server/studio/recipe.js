// recipe: sliders that make a recipe of a pair, and the name that says it.

import { h, later } from "./dom.js";
import { store } from "./store.js";

const SLIDERS = [
  ["bottom", "Bottom", "the lowest layers, from the language expert"],
  ["transition", "Transition", "averaged layers, on either side of the middle"],
  ["top", "Top", "the highest layers, from the language expert"],
];
const STEMS = ["language", "task", "base", "average"];

let count = 0;

export class Recipe {
  // `changed` is told the name that the sliders make.
  constructor(changed) {
    this.pair = null;
    this.inputs = {};
    this.element = h("details", { class: "recipe" });
    const tell = later(() => changed(this.name), 80);
    const rows = SLIDERS.map(([key, label, hint]) => {
      const id = `slider-${++count}`;
      const output = h("output", { for: id });
      const input = h("input", { id, type: "range", min: 0, step: 1, "aria-describedby": `${id}-hint`, oninput: () => (this.#show(), tell()) });
      this.inputs[key] = { input, output };
      return h("div", { class: "slider", title: hint }, h("label", { for: id }, label), input, output, h("span", { class: "unseen", id: `${id}-hint` }, hint));
    });
    const id = `stem-${++count}`;
    this.stem = h("select", { id, onchange: () => (this.#show(), tell()) }, STEMS.map((stem) => h("option", { value: stem }, stem)));
    this.code = h("code", { class: "name" });
    this.reset = h("button", { type: "button", class: "plain", onclick: () => (this.#begin(), changed(this.pair.name)) }, "The family's recipe");
    this.sliders = h(
      "div",
      { class: "sliders" },
      rows,
      h("div", { class: "slider" }, h("label", { for: id }, "Stem"), this.stem),
      h("p", { class: "made" }, this.code, this.reset),
    );
    this.refused = h("p", { class: "hint" });
    this.element.append(h("summary", {}, "Adjust the recipe"), this.sliders, this.refused);
  }

  // The pair whose recipe it is, or null where there is none to adjust.
  show(pair, name = "") {
    this.element.hidden = pair === null;
    if (pair === null) return;
    const takes = store.family.takes_recipes;
    this.sliders.hidden = !takes;
    this.refused.hidden = takes;
    this.refused.replaceChildren(
      "This server serves the family's recipes alone. One that is started with ",
      h("code", {}, "--allow-recipes"),
      " takes others by name, such as ",
      h("code", {}, `${pair.name}@bottom=${store.family.recipe.bottom + 1}`),
      ".",
    );
    this.pair = pair;
    this.#begin(new Map(name.split("@").slice(1).join("").split(",").map((option) => option.split("="))));
  }

  #begin(options = new Map()) {
    const { recipe, base } = store.family;
    const zones = this.pair.zones ?? {};
    const known = { bottom: zones.bottom ?? recipe.bottom, top: zones.top ?? recipe.top, transition: zones.after_bottom ?? recipe.transition };
    for (const [key, { input }] of Object.entries(this.inputs)) {
      input.max = key === "transition" ? Math.floor(base.layers / 2) : base.layers;
      input.value = options.get(key) ?? known[key];
    }
    this.stem.value = options.get("stem") ?? "language";
    this.#show();
  }

  set(zones) {
    for (const [key, { input }] of Object.entries(this.inputs)) input.value = zones[key];
    this.#show();
    this.element.open = true;
  }

  get name() {
    const value = (key) => Number(this.inputs[key].input.value);
    const preset = store.family.recipe.method === "layer_swap" ? "" : "preset=paper,";
    const stem = this.stem.value === "language" ? "" : `,stem=${this.stem.value}`;
    return `${this.pair.name}@${preset}bottom=${value("bottom")},top=${value("top")},transition=${value("transition")}${stem}`;
  }

  #show() {
    for (const { input, output } of Object.values(this.inputs)) {
      output.textContent = input.value;
      input.setAttribute("aria-valuetext", `${input.value} ${input.value === "1" ? "layer" : "layers"}`);
    }
    this.code.textContent = this.name;
  }
}
