// What a script finds out with its client, told as JSON.

export const asked = JSON.parse(process.env.LAYERLOOM_ASKED);

export const user = (content) => [{ role: "user", content }];

/** Prints {fact: what was found}. What throws is told by class, HTTP status and message; the others go on. */
export async function tell(facts) {
  const found = {};
  for (const [name, fact] of Object.entries(facts)) {
    if (process.argv.length > 2 && !process.argv.includes(name)) continue;
    const began = performance.now();
    try {
      found[name] = await fact();
    } catch (error) {
      found[name] = refusal(error);
    }
    console.error(`${name}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
  console.log(JSON.stringify(found));
}

function refusal(error) {
  const kinds = [];
  for (let kind = error.constructor; kind.name; kind = Object.getPrototypeOf(kind)) kinds.push(kind.name);
  return { kinds, status: error.status ?? error.statusCode ?? null, message: error.message };
}

/**
 * How many requests pico has seen aborted by what `leave` does.
 * Again, if it is none: on a busy machine the client may hear of the first token when the last one is made.
 */
export async function aborted(leave) {
  const aborts = () => counted("layerloom:requests_total", 'outcome="abort"');
  const before = await aborts();
  for (let tried = 0; tried < 3 && (await aborts()) === before; tried++) {
    await leave();
    const end = performance.now() + 60_000;
    while ((await counted("vllm:num_requests_running")) > 0 && performance.now() < end)
      await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return (await aborts()) - before;
}

async function counted(name, label = "") {
  const lines = (await (await fetch(`${asked.pico}/metrics`)).text()).split("\n");
  return lines
    .filter((line) => line.startsWith(`${name}{`) && line.includes(label))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}
