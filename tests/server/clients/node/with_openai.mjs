// OpenAI's client for Node.

import OpenAI from "openai";
import { aborted, asked, tell, user } from "./facts.mjs";

const client = (url, apiKey) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });
const demo = client(asked.url, asked.key);
const pico = client(asked.pico, asked.key);

const ask = (model, { messages = user(asked.question), at = demo, ...options } = {}) =>
  at.chat.completions.create({ model, messages, temperature: 0, max_tokens: 16, ...options });

const said = ({ model, choices: [choice], usage }) => ({
  model,
  text: choice.message.content,
  stop: choice.finish_reason,
  usage: [usage.prompt_tokens, usage.completion_tokens],
});

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const form = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: asked.schema } };
const add = { type: "function", function: { name: "add" } };

await tell({
  models: async () => (await all(demo.models.list())).map((model) => model.id),

  retrieve: async () => Promise.all(asked.spellings.map(async (name) => (await demo.models.retrieve(name)).id)),

  chat: async () => said(await ask("math+swahili")),

  stream: async () => {
    const chunks = await all(await ask("math+swahili", { stream: true, stream_options: { include_usage: true } }));
    const choices = chunks.flatMap((chunk) => chunk.choices);
    const { usage } = chunks.at(-1);
    return {
      model: [...new Set(chunks.map((chunk) => chunk.model))].join(),
      text: choices.map((choice) => choice.delta.content ?? "").join(""),
      stop: choices.at(-1).finish_reason,
      usage: [usage.prompt_tokens, usage.completion_tokens],
    };
  },

  spellings: async () => Promise.all(asked.spellings.map(async (name) => said(await ask(name)))),

  auto: async () =>
    Promise.all(
      asked.languages.map(async (text) => {
        const { data, response } = await ask("math+auto", { messages: user(text), max_tokens: 4 }).withResponse();
        return [data.model, response.headers.get("X-Layerloom-Model")];
      }),
    ),

  unknown: () => ask("math+swahli"),

  unknown_streams: async () => all(await ask("math+swahli", { stream: true })),

  key: () => ask("math+swahili", { at: client(asked.url, "wrong") }),

  system: () => ask("math+swahili", { messages: [{ role: "system", content: "Be brief." }, ...user("Asha")] }),

  turns: async () => said(await ask("math+swahili", { messages: asked.thread, at: pico })).text,

  logprobs: async () => {
    const { choices } = await ask("math+bengali", { logprobs: true, top_logprobs: 2 });
    return choices[0].logprobs.content.map((entry) => [entry.token, entry.logprob, entry.top_logprobs.length]);
  },

  form: async () => said(await ask("math+swahili", { at: pico, max_tokens: 64, response_format: form })).text,

  tools: async () => {
    const { message } = (await ask("math+swahili", { tools: [asked.tool], tool_choice: "auto" })).choices[0];
    return [message.content, (message.tool_calls ?? []).map((call) => call.function.name)];
  },

  forced: async () => {
    const { choices } = await ask("math+swahili", { at: pico, tools: [asked.tool], tool_choice: add, max_tokens: 64 });
    const [call] = choices[0].message.tool_calls;
    return { name: call.function.name, arguments: call.function.arguments };
  },

  together: async () =>
    Promise.all(
      asked.names.map(async (name) => {
        const { model, text } = said(await ask(name));
        return [model, text];
      }),
    ),

  abort: () =>
    aborted(async () => {
      const options = { at: pico, stream: true, max_tokens: asked.endless, ignore_eos: true };
      for await (const _ of await ask("math+swahili", options)) break;
    }),

  completions: async () => {
    const prompt = `${asked.question}\n`;
    const answer = await demo.completions.create({ model: "math+sw", prompt, max_tokens: 16, temperature: 0 });
    return [answer.model, answer.choices[0].text];
  },

  responses: async () => {
    const options = { model: "math+sw", input: asked.question, max_output_tokens: 16, temperature: 0 };
    const answer = await demo.responses.create(options);
    return [answer.model, answer.output_text];
  },
});
