// dom: elements made from text. Whatever comes from files or models is text here, never markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, properties, ...children) => filled(document.createElement(tag), properties, children);

export const s = (tag, properties, ...children) => filled(document.createElementNS(SVG, tag), properties, children);

export const at = (id) => document.getElementById(id);

export function later(act, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), milliseconds);
  };
}

// What a browser keeps; private windows may refuse, and then nothing is remembered.
function kept(storage) {
  const of = () => (storage === "session" ? sessionStorage : localStorage);
  return {
    get(name) {
      try {
        return of().getItem(`layerloom.${name}`);
      } catch {
        return null;
      }
    },
    set(name, value) {
      try {
        if (value === null) of().removeItem(`layerloom.${name}`);
        else of().setItem(`layerloom.${name}`, value);
      } catch {}
    },
  };
}

export const remembered = kept("local");
export const session = kept("session");

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count) {
  let unit = 0;
  while (count >= 1000 && unit < UNITS.length - 1) [count, unit] = [count / 1000, unit + 1];
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(count < 10 ? 2 : 1)} ${UNITS[unit]}`;
}

export function seconds(count) {
  if (count < 1) return `${Math.round(count * 1000)} ms`;
  return count < 60 ? `${count.toFixed(count < 10 ? 2 : 1)} s` : `${Math.floor(count / 60)} min ${Math.round(count % 60)} s`;
}

export const ago = (count) => (count < 3 ? "just now" : count < 90 ? `${Math.round(count)} s ago` : count < 5400 ? `${Math.round(count / 60)} min ago` : `${Math.round(count / 3600)} h ago`);

export const many = (count, one, several = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : several}`;
