// stack: a composition drawn as its layers, the first at the bottom, and said in words.

import { h, s } from "./dom.js";

const COLOURS = 12;
const KINDS = ["attention", "mlp", "norm"];

const numbers = new Map();

// Experts have their colour from their place in the family; those beyond the twelfth a pattern, too.
export function colourExperts(experts) {
  numbers.clear();
  experts.forEach((expert, index) => numbers.set(expert.name, index));
}

function box(source, x, y, width, height, round = 0) {
  const place = { x, y, width, height, rx: round || undefined };
  if (source === "base") return [s("rect", { ...place, class: "base" })];
  const number = numbers.get(source) ?? 0;
  const pattern = Math.floor(number / COLOURS) % 4;
  return [s("rect", { ...place, class: `expert-${number % COLOURS}` }), pattern > 0 && s("rect", { ...place, fill: `url(#pattern-${pattern})` })];
}

// Weights side by side, in proportion.
function mixture(weights, x, y, width, height, round) {
  const found = Object.entries(weights);
  const gap = found.length > 1 && width > 20 ? 1 : 0;
  let left = x;
  return found.map(([source, weight]) => {
    const share = (width - gap * (found.length - 1)) * weight;
    const drawn = box(source, left, y, share, height, round);
    left += share + gap;
    return drawn;
  });
}

export const isUniform = (blend) => "all" in blend;

// One layer: its mixture, or one for each kind of module, one above the other.
export function band(blend, x, y, width, height, round = 1.5) {
  if (isUniform(blend)) return mixture(blend.all, x, y, width, height, round);
  const gap = height >= 8 ? 0.75 : 0.3;
  const each = (height - 2 * gap) / KINDS.length;
  return KINDS.map((kind, index) => mixture(blend[kind], x, y + index * (each + gap), width, each, 0));
}

export function layerHeight(count, room = 132, most = 15) {
  return Math.max(2.5, Math.min(most, room / count));
}

// `least` is what a layer needs whose kinds of module differ.
export function stack(composition, { width = 56, room = 132, most = 15, least = 5 } = {}) {
  const layers = composition.layers;
  const mixed = layers.some((blend) => !isUniform(blend));
  const each = Math.max(mixed ? least : 0, layerHeight(layers.length, room, most));
  const gap = each >= 5 ? 1.5 : 0.5;
  const cap = 7;
  const height = 2 * (cap + 3) + layers.length * each;
  const inset = width * 0.16;
  const drawn = [band(composition.stem, inset, 0, width - 2 * inset, cap, 3)];
  layers.forEach((blend, index) => {
    drawn.push(s("g", {}, s("title", {}, `layer ${index}: ${blendWords(blend)}`), band(blend, 0, cap + 3 + (layers.length - 1 - index) * each, width, each - gap)));
  });
  drawn.push(band(composition.stem, inset, height - cap, width - 2 * inset, cap, 3));
  const said = `${composition.name}: ${words(composition)}`;
  return s("svg", { class: "stack", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said }, drawn);
}

// A swatch of an expert or a blend, for what is written beside it.
export function swatch(blend, size = 12) {
  const shown = typeof blend === "string" ? { all: { [blend]: 1 } } : blend;
  return s("svg", { class: "swatch", width: size, height: size, viewBox: `0 0 ${size} ${size}`, "aria-hidden": "true" }, band(shown, 0, 0, size, size, 2));
}

export function mixtureWords(weights) {
  const found = Object.entries(weights);
  if (found.length === 1) return found[0][0];
  return found.map(([source, weight]) => `${Number((100 * weight).toFixed(1))}% ${source}`).join(" + ");
}

export function blendWords(blend) {
  return isUniform(blend) ? mixtureWords(blend.all) : KINDS.map((kind) => `${kind} ${mixtureWords(blend[kind])}`).join(", ");
}

// Neighbouring layers of one blend, from the bottom up.
export function runs(composition) {
  const found = [];
  composition.layers.forEach((blend, index) => {
    const last = found.at(-1);
    if (last && last.blend === blend) last.to = index;
    else found.push({ from: index, to: index, blend });
  });
  return found;
}

export const span = (run) => (run.from === run.to ? `${run.from}` : `${run.from}–${run.to}`);

export function words(composition) {
  const said = runs(composition).map((run) => `${run.from === run.to ? "layer" : "layers"} ${span(run)} ${blendWords(run.blend)}`);
  return `${said.join("; ")}; stem ${blendWords(composition.stem)}`;
}

// The same as a list beside the drawing: top layers first, as they are drawn.
export function legend(composition, { most = 6, hidden = false } = {}) {
  const found = runs(composition).reverse();
  const shown = found.length > most ? found.slice(0, most - 1) : found;
  const row = (blend, where) => h("li", {}, swatch(blend, 10), h("span", { class: "where" }, where), h("span", { class: "what" }, blendWords(blend)));
  return h(
    "ul",
    { class: "legend", "aria-hidden": hidden ? "true" : undefined },
    shown.map((run) => row(run.blend, span(run))),
    shown.length < found.length && h("li", {}, h("span", { class: "where" }, "…"), h("span", { class: "what" }, `${found.length - shown.length} more runs`)),
    row(composition.stem, "stem"),
  );
}
