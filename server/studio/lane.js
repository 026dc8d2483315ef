// lane: one of the compositions that are compared: which it is, its stack, its answer.

import { h } from "./dom.js";
import { Answer } from "./answer.js";
import { Recipe } from "./recipe.js";
import { legend, stack } from "./stack.js";
import { store } from "./store.js";

const GROUPS = [
  ["The language found by itself", (family) => family.auto],
  ["Named by the family", (family) => named(family, "named")],
  ["Task and language", (family) => named(family, "pair")],
  ["Experts", (family) => named(family, "expert")],
  ["Base", (family) => named(family, "base")],
];

const named = (family, sort) => family.compositions.filter((each) => each.sort === sort).map((each) => each.name);

// Characters of an answer that is set in large type.
const BRIEF = 12;

// Milliseconds between drawing an answer as it comes, and how much longer than drawing it the pause is.
const OFTEN = 40;
const RESTING = 8;

let count = 0;

export class Lane {
  // `host` is told when a lane changes, ends, or wants to go.
  constructor(name, host) {
    this.name = name;
    this.host = host;
    this.answer = null;
    this.plan = null;
    this.pause = OFTEN;
    this.number = ++count;
    const id = `lane-${this.number}`;
    this.select = h("select", { id, onchange: () => this.choose(this.select.value) });
    this.remove = h("button", { type: "button", class: "plain icon", onclick: () => host.remove(this) }, "×");
    this.spine = h("div", { class: "spine" });
    this.text = h("div", { class: "text", dir: "auto" });
    this.thought = h("details", { class: "thought", hidden: true }, h("summary", {}, "Thoughts"), h("div", { class: "text", dir: "auto" }));
    this.trouble = h("p", { class: "trouble", hidden: true });
    this.chosen = h("p", { class: "chosen", hidden: true });
    this.figures = h("dl", { class: "figures" });
    this.status = h("p", { class: "unseen", role: "status" });
    this.layers = h("div", { class: "layers" });
    this.recipe = new Recipe((made) => this.choose(made, false));
    this.body = h("div", { class: "answer" }, this.spine, h("div", { class: "said" }, this.chosen, this.thought, this.text, this.trouble));
    this.element = h(
      "article",
      { class: "lane", "aria-label": name },
      h("header", {}, h("label", { for: id, class: "unseen" }, "Composition"), this.select, this.remove),
      this.body,
      this.figures,
      this.layers,
      this.recipe.element,
      this.status,
    );
    this.#nothing();
  }

  fill() {
    const options = GROUPS.map(([label, names]) => [label, names(store.family)]).filter(([, names]) => names.length > 0);
    const known = options.flatMap(([, names]) => names);
    if (!known.includes(this.name)) {
      if (this.name.includes("@") && store.family.takes_recipes) options.push(["With a recipe of its own", [this.name]]);
      else this.name = known[0];
    }
    this.select.replaceChildren(...options.map(([label, names]) => h("optgroup", { label }, names.map((name) => h("option", { value: name }, name)))));
    this.select.value = this.name;
    this.choose(this.name);
  }

  // `begin` where the sliders must follow, and not lead.
  async choose(name, begin = true) {
    this.name = name;
    this.#offer(name);
    this.element.setAttribute("aria-label", name);
    this.remove.setAttribute("aria-label", `Remove ${name}`);
    this.host.changed();
    if (begin) this.recipe.show(this.#pair(name), name);
    if (this.isAuto) {
      this.plan = null;
      this.#draw("The server finds the language of what you ask, and takes the composition for it.");
      return;
    }
    try {
      const plan = await store.plan(name);
      if (this.name !== name) return;
      this.plan = plan;
      this.#draw();
    } catch (error) {
      if (this.name !== name) return;
      this.plan = null;
      this.#draw(error.message, true);
    }
  }

  #pair(name) {
    const pair = store.byName.get(name.split("@")[0]);
    return pair?.sort === "pair" ? pair : null;
  }

  // A recipe that sliders have made takes the place of the one before.
  #offer(name) {
    const own = this.select.querySelector("option[data-own]");
    if ([...this.select.options].some((option) => option !== own && option.value === name)) own?.parentElement.remove();
    else if (own) [own.value, own.textContent] = [name, name];
    else this.select.append(h("optgroup", { label: "With a recipe of its own" }, h("option", { value: name, "data-own": true }, name)));
    this.select.value = name;
  }

  #draw(note = "", wrong = false) {
    if (this.plan) {
      this.spine.replaceChildren(stack(this.plan, { width: 44, room: 168, most: 18, least: 6 }));
      this.layers.replaceChildren(legend(this.plan, { hidden: true }), h("span", { class: "badge", hidden: true }));
    } else {
      this.spine.replaceChildren(h("div", { class: "unknown", "aria-hidden": "true" }, "?"));
      this.layers.replaceChildren(h("p", { class: wrong ? "trouble" : "hint" }, note));
    }
    this.resident();
  }

  // Whether it is in memory now.
  resident() {
    const badge = this.layers.querySelector(".badge");
    if (!badge || !store.live || !this.plan) return;
    const there = isThere(this.plan);
    badge.hidden = false;
    badge.className = `badge ${there ? "there" : "absent"}`;
    badge.textContent = there ? "in memory" : "not in memory";
  }

  #nothing() {
    this.text.textContent = "";
    this.text.classList.add("empty");
  }

  get isAuto() {
    return store.family.auto.includes(this.name);
  }

  get running() {
    return this.answer !== null && this.answer.ended === null;
  }

  async ask(body) {
    this.answer?.stop();
    const answer = (this.answer = new Answer(() => this.answer === answer && this.#soon()));
    this.before = store.live;
    // Of a language that is found by itself it is known later.
    this.wasThere = this.plan && this.before && !this.isAuto ? isThere(this.plan) : null;
    this.text.classList.remove("empty");
    this.body.setAttribute("aria-busy", "true");
    this.#show();
    this.status.textContent = `${this.name} is asked`;
    await answer.ask({ ...body, model: this.name });
    if (this.answer !== answer) return;
    this.body.removeAttribute("aria-busy");
    this.status.textContent = `${this.name}: ${answer.reason ?? answer.figures().map(([name, value]) => `${name} ${value}`).join(", ")}`;
    if (answer.chosen) await this.#chose(answer.chosen);
    this.#show();
    this.host.ended(this);
  }

  stop() {
    this.answer?.stop();
  }

  // Often enough to be read, and seldom where drawing it takes long: a long answer must not keep the page from all else.
  #soon() {
    if (this.waiting) return;
    this.waiting = true;
    setTimeout(() => {
      requestAnimationFrame(() => {
        this.waiting = false;
        if (this.answer?.chosen && this.plan?.name !== this.answer.chosen) this.#chose(this.answer.chosen);
        const began = performance.now();
        this.#show();
        this.text.getBoundingClientRect();
        this.pause = Math.max(OFTEN, RESTING * (performance.now() - began));
      });
    }, this.pause);
  }

  async #chose(name) {
    const plan = await store.plan(name).catch(() => null);
    if (plan === null || !this.isAuto) return;
    this.plan = plan;
    if (this.before) this.wasThere = isThere(plan, this.before);
    this.#draw();
  }

  #show() {
    const { answer } = this;
    const shown = this.text.firstChild;
    // What is added to a text is laid out sooner than a text that takes its place.
    if (shown && answer.text.startsWith(shown.data)) shown.appendData(answer.text.slice(shown.data.length));
    else this.text.textContent = answer.text;
    this.text.classList.toggle("coming", this.running);
    this.text.classList.toggle("brief", answer.text.trim().length <= BRIEF);
    this.thought.hidden = answer.thought === "";
    this.thought.lastElementChild.textContent = answer.thought;
    this.trouble.hidden = answer.reason === null;
    this.trouble.textContent = answer.reason ?? "";
    this.chosen.hidden = !answer.chosen;
    this.chosen.replaceChildren("answered by ", h("strong", {}, answer.chosen ?? ""));
    const figures = answer.figures();
    if (this.wasThere !== null && answer.first !== null) figures.unshift(["weights", this.wasThere ? "were in memory" : "assembled for this"]);
    if (figures.length === 0 && this.running) figures.push(["", this.wasThere === false ? "assembling its layers …" : "waiting for the first token …"]);
    this.figures.replaceChildren(...figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }
}

export function isThere(plan, live = store.live) {
  return plan.digest === store.byName.get("base")?.digest || Boolean(live?.compositions.some((each) => each.digest === plan.digest));
}
