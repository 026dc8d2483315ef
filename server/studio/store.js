// store: what the page knows of the server: the family once, the bank again and again while somebody looks.

import { get, Trouble } from "./api.js";
import { colourExperts } from "./stack.js";

const OFTEN = 1500;
const SELDOM = 5000;
const LATER = 15000;
const MOST_NAMES = 32;

class Store extends EventTarget {
  family = null;
  live = null;
  byName = new Map();
  byDigest = new Map();
  #timer = null;
  #looking = null;
  #loading = null;
  #failures = 0;
  #busy = 0;
  #refused = false;
  hurried = false;

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  // The family, and from then on the bank.
  async load() {
    this.#loading ??= this.#load().finally(() => (this.#loading = null));
    return this.#loading;
  }

  async #load() {
    const family = await get("studio/family");
    this.byName.clear();
    this.byDigest.clear();
    family.compositions = this.#taken(family);
    this.family = family;
    this.#refused = false;
    colourExperts(family.experts);
    this.tell("family");
    this.#schedule(0);
  }

  #taken({ compositions, blends }) {
    return compositions.map((composition) => {
      if (composition.error) return composition;
      const found = { ...composition, layers: composition.layers.map((number) => blends[number]), stem: blends[composition.stem] };
      this.byName.set(found.name, found);
      if (!this.byDigest.has(found.digest)) this.byDigest.set(found.digest, found);
      return found;
    });
  }

  // Compositions by any name, recipes too: those that are not known are asked for.
  async plans(names) {
    const missing = [...new Set(names)].filter((name) => !this.byName.has(name));
    const troubles = new Map();
    for (let first = 0; first < missing.length; first += MOST_NAMES) {
      const asked = missing.slice(first, first + MOST_NAMES);
      const query = new URLSearchParams(asked.map((name) => ["name", name]));
      const found = this.#taken(await get(`studio/plans?${query}`));
      asked.forEach((name, index) => {
        if (found[index].error) troubles.set(name, found[index].error);
        else this.byName.set(name, found[index]);
      });
    }
    return names.map((name) => this.byName.get(name) ?? { name, error: troubles.get(name) });
  }

  async plan(name) {
    const [found] = await this.plans([name]);
    if (found.error) throw new Trouble(found.error);
    return found;
  }

  isResident(digest) {
    return this.live?.compositions.find((each) => each.digest === digest);
  }

  // Looks at the bank now.
  async look() {
    this.#looking ??= this.#look().finally(() => (this.#looking = null));
    return this.#looking;
  }

  async #look() {
    try {
      const live = await get("studio/live");
      this.live = live;
      this.#failures = 0;
      this.tell("reached");
      this.tell("live");
      if (this.family && live.family !== this.family.digest) await this.load();
    } catch (error) {
      this.#failures += 1;
      this.tell("unreached", error);
      // Until there is another key.
      this.#refused = error.status === 401;
    } finally {
      this.#schedule();
    }
  }

  // While something runs it is looked at more often.
  hurry(begins) {
    this.#busy += begins ? 1 : -1;
    this.#schedule();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  #schedule(wait) {
    this.stop();
    if (document.hidden || !this.family || this.#refused) return;
    const usual = this.#failures > 2 ? LATER : this.#busy > 0 || this.hurried ? OFTEN : SELDOM;
    this.#timer = setTimeout(() => this.look(), wait ?? usual);
  }

  watch() {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.stop();
      else this.#schedule(0);
    });
  }
}

export const store = new Store();

// Another composition that has the very same weights, under the name that was first.
export function twin({ name, digest }) {
  const first = store.byDigest.get(digest)?.name;
  return first === name ? null : first;
}
