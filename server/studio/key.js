// key: asks for the API key where the server wants one, and keeps it for this tab alone.

import { events, hasKey, useKey } from "./api.js";
import { at, h } from "./dom.js";

const dialog = at("key-dialog");
const button = at("key-button");
const input = h("input", { id: "key", type: "password", autocomplete: "off", required: true, spellcheck: "false", "aria-describedby": "key-trouble" });
const trouble = h("p", { class: "trouble", id: "key-trouble", role: "alert", hidden: true });
const forget = h("button", { type: "button", class: "plain", hidden: true }, "Forget it");

// `changed` is called when there is another key to try.
export function build(changed) {
  const form = h(
    "form",
    {
      onsubmit: (event) => {
        event.preventDefault();
        const given = input.value.trim();
        // What else a header cannot carry.
        if (!/^[\x21-\x7e]+$/.test(given)) return complain("A key has no blanks and no letters beyond ASCII.");
        input.value = "";
        useKey(given);
        dialog.close();
        changed();
      },
    },
    h("h2", { id: "key-title" }, "API key"),
    h("p", {}, "This server answers to those who have its API key. It stays in this tab, and is sent to this server alone."),
    h("label", { for: "key" }, "Key"),
    input,
    trouble,
    h("div", { class: "actions" }, h("button", { type: "submit", class: "main" }, "Use it"), forget),
  );
  dialog.append(form);
  button.addEventListener("click", () => open());
  forget.addEventListener("click", () => {
    useKey("");
    dialog.close();
    changed();
  });
  events.addEventListener("key", ({ detail }) => {
    button.hidden = false;
    if (!dialog.open) open();
    if (detail.wrong) complain(`The server did not take this key: ${detail.reason}.`);
  });
  button.hidden = !hasKey();
}

function open() {
  trouble.hidden = true;
  forget.hidden = !hasKey();
  button.hidden = false;
  dialog.showModal();
  input.focus();
}

function complain(reason) {
  trouble.textContent = reason;
  trouble.hidden = false;
  input.setAttribute("aria-invalid", "true");
  input.select();
}
