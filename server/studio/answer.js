// answer: one composition's answer as it comes, and how fast.

import { chat } from "./api.js";
import { many, seconds } from "./dom.js";

export class Answer {
  // `told` is called whenever there is something new.
  constructor(told) {
    this.told = told;
    this.text = this.thought = "";
    this.state = "waiting";
    this.chosen = this.reason = null;
    this.tokens = 0;
    this.first = this.last = this.ended = null;
    this.stopping = new AbortController();
  }

  stop() {
    this.stopping.abort();
  }

  async ask(body) {
    this.began = performance.now();
    try {
      const { chosen, chunks } = await chat(body, this.stopping.signal);
      this.chosen = chosen;
      for await (const chunk of chunks) this.#take(chunk);
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      if (this.state === "failed") this.reason = error.message;
    }
    this.ended = performance.now();
    this.told(this);
  }

  #take(chunk) {
    const [choice] = chunk.choices ?? [];
    const delta = choice?.delta ?? {};
    const tokens = chunk.usage?.completion_tokens ?? this.tokens;
    this.model = chunk.model;
    this.thought += delta.reasoning ?? delta.reasoning_content ?? "";
    this.text += delta.content ?? "";
    if (tokens > this.tokens) {
      this.last = performance.now();
      this.first ??= this.last;
      if (this.firstTokens === undefined) this.firstTokens = tokens;
      this.tokens = tokens;
    }
    this.cause = choice?.finish_reason ?? this.cause;
    this.state = this.first === null ? "waiting" : "coming";
    this.told(this);
  }

  get firstToken() {
    return this.first === null ? null : (this.first - this.began) / 1000;
  }

  // Tokens a second, from the first on; null where there are too few to say.
  get rate() {
    const passed = (this.last - this.first) / 1000;
    return this.tokens - this.firstTokens >= 3 && passed > 0 ? (this.tokens - this.firstTokens) / passed : null;
  }

  figures() {
    const found = [];
    if (this.firstToken !== null) found.push(["first token", seconds(this.firstToken)]);
    if (this.tokens > 0) found.push(["length", many(this.tokens, "token")]);
    if (this.rate !== null) found.push(["speed", `${this.rate < 10 ? this.rate.toFixed(1) : Math.round(this.rate)} tokens/s`]);
    if (this.cause === "length") found.push(["ended", "at the limit of tokens"]);
    if (this.state === "stopped") found.push(["ended", "stopped"]);
    return found;
  }
}
