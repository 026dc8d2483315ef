// ask: one prompt to some compositions, side by side.

import { at, h, later, remembered } from "./dom.js";
import { Lane } from "./lane.js";
import { store } from "./store.js";

const MOST = 3;
const LONG = 512;
const SOON = 400;

const view = at("view-ask");
const lanes = [];

const prompt = h("textarea", { id: "prompt", rows: 3, dir: "auto", placeholder: "Ask something in one of the family's languages", oninput: later(keep, 300) });
const system = h("textarea", { id: "system", rows: 2, dir: "auto", oninput: later(keep, 300) });
const temperature = h("input", { id: "temperature", type: "number", min: 0, max: 2, step: 0.1, value: 0, onchange: keep });
const longest = h("input", { id: "longest", type: "number", min: 1, step: 1, onchange: keep });
const go = h("button", { type: "submit", class: "main" }, "Ask");
const halt = h("button", { type: "button", class: "stop", hidden: true, onclick: stop }, "Stop");
const more = h("button", { type: "button", class: "plain", onclick: () => add() }, "+ Compare with another");
const grid = h("div", { class: "lanes" });

const form = h(
  "form",
  { class: "panel prompt", onsubmit: (event) => (event.preventDefault(), ask()) },
  h("label", { for: "prompt" }, "Prompt"),
  prompt,
  h(
    "div",
    { class: "actions" },
    go,
    halt,
    h("span", { class: "hint keys" }, h("kbd", {}, "Ctrl"), " + ", h("kbd", {}, "Enter"), " asks, ", h("kbd", {}, "Esc"), " stops"),
    h(
      "details",
      { class: "options" },
      h("summary", {}, "Options"),
      h(
        "div",
        { class: "fields" },
        h("div", {}, h("label", { for: "temperature" }, "Temperature"), temperature),
        h("div", {}, h("label", { for: "longest" }, "Most tokens"), longest),
        h("div", { class: "wide" }, h("label", { for: "system" }, "System message"), system),
      ),
    ),
  ),
);

export function build() {
  view.append(h("h1", { id: "title-ask", class: "unseen" }, "Ask"), form, grid, h("p", { class: "below" }, more));
  prompt.value = remembered.get("prompt") ?? "";
  system.value = remembered.get("system") ?? "";
  const options = parsed(remembered.get("options")) ?? {};
  temperature.value = options.temperature ?? 0;
  longest.value = options.longest ?? "";
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), ask());
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]") && lanes.some((lane) => lane.running)) stop();
  });
  store.addEventListener("family", () => {
    if (remembered.get("prompt") === null && !prompt.value) prompt.value = store.family.example ?? "";
    if (lanes.length === 0) (parsed(remembered.get("lanes")) ?? firstLanes()).slice(0, MOST).forEach(add);
    else lanes.forEach((lane) => lane.fill());
  });
  store.addEventListener("live", () => lanes.forEach((lane) => lane.resident()));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// Both experts and their pair: what layer swapping is about.
function firstLanes() {
  const known = store.family.compositions.filter((each) => !each.error);
  const pair = known.find((each) => each.sort === "pair");
  const found = pair ? [pair.task, pair.language, pair.name] : known.map((each) => each.name);
  return window.innerWidth < 700 ? found.slice(-2) : found.slice(-MOST);
}

const host = {
  changed: keep,
  remove(lane) {
    lane.stop();
    const [index] = [lanes.indexOf(lane)];
    lanes.splice(index, 1);
    lane.element.remove();
    arrange();
    keep();
    (lanes[Math.min(index, lanes.length - 1)]?.select ?? more).focus();
  },
  ended() {
    running();
    store.look();
  },
};

function add(name) {
  const taken = new Set(lanes.map((lane) => lane.name));
  const unused = [...store.family.auto, ...store.family.compositions.map((each) => each.name)].find((each) => !taken.has(each));
  const lane = new Lane(typeof name === "string" ? name : (unused ?? "base"), host);
  lanes.push(lane);
  grid.append(lane.element);
  lane.fill();
  arrange();
  return lane;
}

function arrange() {
  grid.dataset.count = lanes.length;
  more.hidden = lanes.length >= MOST;
  for (const lane of lanes) lane.remove.hidden = lanes.length === 1;
}

function keep() {
  remembered.set("prompt", prompt.value);
  remembered.set("system", system.value);
  remembered.set("options", JSON.stringify({ temperature: temperature.value, longest: longest.value }));
  if (lanes.length > 0) remembered.set("lanes", JSON.stringify(lanes.map((lane) => lane.name)));
}

// Takes a composition to the front: as a lane of its own, or in place of the last.
export function show(name, zones) {
  let lane = lanes.find((each) => each.name === name);
  if (!lane && lanes.length < MOST) lane = add(name);
  if (!lane) {
    lane = lanes.at(-1);
    lane.choose(name);
  }
  if (zones) {
    lane.recipe.set(zones);
    lane.choose(lane.recipe.name, false);
  }
  location.hash = "#ask";
  return lane;
}

function running() {
  const some = lanes.some((lane) => lane.running);
  if (some === halt.hidden) store.hurry(some);
  halt.hidden = !some;
  if (!some && document.activeElement === halt) go.focus();
}

function stop() {
  for (const lane of lanes) lane.stop();
}

async function ask() {
  const text = prompt.value.trim();
  if (!text) {
    prompt.focus();
    return;
  }
  keep();
  stop();
  // What is in memory is looked at first, to tell what had to be assembled; but not for long.
  await Promise.race([store.look(), new Promise((done) => setTimeout(done, SOON))]);
  const messages = [...(system.value.trim() ? [{ role: "system", content: system.value }] : []), { role: "user", content: prompt.value }];
  const most = Number(longest.value) || Math.min(LONG, Math.floor((store.family.context) / 2));
  const body = { messages, temperature: Number(temperature.value) || 0, max_tokens: most };
  for (const lane of lanes) lane.ask(body);
  running();
}
