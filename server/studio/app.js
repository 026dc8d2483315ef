// app: the views, and what is shown of the server's state above them.

import * as ask from "./ask.js";
import * as change from "./change.js";
import * as compositions from "./compositions.js";
import * as detail from "./detail.js";
import { at, remembered } from "./dom.js";
import * as key from "./key.js";
import * as memory from "./memory.js";
import { store } from "./store.js";

const VIEWS = ["ask", "compositions", "memory", "change"];
const ENTERED = { memory: memory.all, change: change.enter };
const banner = at("banner");

function route(moved = true) {
  const wanted = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : VIEWS[0];
  for (const name of VIEWS) at(`view-${name}`).hidden = name !== wanted;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${wanted[0].toUpperCase()}${wanted.slice(1)} · layerloom Studio`;
  store.hurried = wanted === "memory";
  if (moved) window.scrollTo(0, 0);
  ENTERED[wanted]?.();
  if (wanted === "memory" && store.family) store.look();
}

function say(message) {
  banner.textContent = message;
  banner.hidden = message === "";
}

async function load() {
  try {
    await store.load();
    say("");
  } catch (error) {
    // A dialog asks for the key.
    if (error.status === 401) return;
    say(`${error.message} Trying again …`);
    setTimeout(load, 5000);
  }
}

const THEMES = ["system", "light", "dark"];

function themes() {
  const button = at("theme-button");
  const show = () => {
    const now = document.documentElement.dataset.theme ?? "system";
    button.textContent = { system: "◐", light: "☀", dark: "☾" }[now];
    button.setAttribute("aria-label", `Theme: ${now}`);
    button.title = `Theme: ${now}`;
  };
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    remembered.set("theme", next === "system" ? null : next);
    show();
  });
  show();
}

for (const view of [ask, compositions, memory, change, detail]) view.build();
key.build(load);
themes();
store.watch();
store.addEventListener("unreached", ({ detail: error }) => error.status !== 401 && say(error.message));
store.addEventListener("reached", () => say(""));
window.addEventListener("hashchange", () => route());
document.querySelector(".skip").addEventListener("click", (event) => {
  // Not the hash, which is the view's.
  event.preventDefault();
  at("main").focus();
});
route(false);
load();
