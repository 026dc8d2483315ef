// Vercel's AI SDK, with the provider for servers such as this one, and with Anthropic's.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { aborted, asked, tell, user } from "./facts.mjs";

const provider = (url, apiKey = asked.key) =>
  createOpenAICompatible({
    name: "layerloom",
    baseURL: `${url}/v1`,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const demo = provider(asked.url);
const pico = provider(asked.pico);
const anthropic = createAnthropic({ baseURL: `${asked.url}/v1`, apiKey: asked.key });

const asking = (name, { at = demo, content = asked.question, ...options } = {}) => ({
  model: at(name),
  messages: user(content),
  temperature: 0,
  maxOutputTokens: 16,
  maxRetries: 0,
  ...options,
});
const ask = (...given) => generateText(asking(...given));

const said = ({ response, text, finishReason, usage }) => ({
  model: response.modelId,
  text,
  stop: finishReason,
  usage: [usage.inputTokens, usage.outputTokens],
});

const add = tool({
  description: asked.tool.function.description,
  inputSchema: jsonSchema(asked.tool.function.parameters),
  strict: asked.tool.function.strict,
});

async function streamed(given) {
  let failed;
  const stream = streamText({ ...given, onError: ({ error }) => (failed = error) });
  let text = "";
  for await (const part of stream.textStream) text += part;
  if (failed) throw failed;
  return said({
    text,
    response: await stream.response,
    finishReason: await stream.finishReason,
    usage: await stream.usage,
  });
}

await tell({
  chat: async () => said(await ask("math+swahili")),

  stream: () => streamed(asking("math+swahili")),

  spellings: async () => Promise.all(asked.spellings.map(async (name) => said(await ask(name)))),

  auto: async () =>
    Promise.all(
      asked.languages.map(async (content) => {
        const { response } = await ask("math+auto", { content, maxOutputTokens: 4 });
        return [response.modelId, response.headers["x-layerloom-model"]];
      }),
    ),

  unknown: () => ask("math+swahli"),

  unknown_streams: () => streamed(asking("math+swahli")),

  key: () => ask("math+swahili", { at: provider(asked.url, "wrong") }),

  system: () => ask("math+swahili", { system: "Be brief." }),

  turns: async () => {
    const [{ content: system }, ...messages] = asked.thread;
    return said(await ask("math+swahili", { at: pico, system, messages })).text;
  },

  form: async () => {
    const output = Output.object({ schema: jsonSchema(asked.schema) });
    return (await ask("math+swahili", { at: pico, maxOutputTokens: 64, output })).output;
  },

  tools: async () => {
    const { text, toolCalls } = await ask("math+swahili", { tools: { add }, toolChoice: "auto" });
    return [text, toolCalls.map((call) => call.toolName)];
  },

  forced: async () => {
    const options = { at: pico, maxOutputTokens: 64, tools: { add }, toolChoice: { type: "tool", toolName: "add" } };
    const { toolCalls } = await ask("math+swahili", options);
    return { name: toolCalls[0].toolName, arguments: toolCalls[0].input };
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
      const leaving = new AbortController();
      const stream = streamText({
        ...asking("math+swahili", { at: pico, maxOutputTokens: asked.endless }),
        providerOptions: { layerloom: { ignore_eos: true } },
        abortSignal: leaving.signal,
        onError: () => undefined,
      });
      for await (const _ of stream.textStream) break;
      leaving.abort();
    }),

  anthropic: async () => said(await ask("math+swahili", { at: anthropic })),

  anthropic_streams: () => streamed(asking("math+swahili", { at: anthropic })),

  anthropic_unknown: () => ask("math+swahli", { at: anthropic }),
});
