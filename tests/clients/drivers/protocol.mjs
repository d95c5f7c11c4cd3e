// The line protocol of protocol.py, for the clients in JavaScript.

import { createInterface } from "node:readline";

export function tell(event, facts) {
  write({ event, ...facts });
}

function write(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

/** A `fetch` that tells of each HTTP exchange. */
export async function lookingFetch(url, init) {
  const response = await fetch(url, init);
  const asked = new Headers(init?.headers);
  tell("http", {
    method: init?.method ?? "GET",
    status: response.status,
    resumes: asked.get("last-event-id"),
    session: asked.get("mcp-session-id"),
    given: response.headers.get("mcp-session-id"),
    route: response.headers.get("mcp-hybrid-route"),
  });
  return response;
}

/** Fill in a form: every field with the same name. */
export function filled(schema) {
  return Object.fromEntries(Object.keys(schema.properties ?? {}).map((name) => [name, "Ada"]));
}

/** The text of a result's blocks. */
export function joined(blocks) {
  return blocks.map((block) => block.text).join("");
}

/** Do what is commanded. `open` gives { version, list, call, logLevel, subscribe, close }. */
export async function drive(open) {
  let face;
  const acts = {
    list: () => face.list(),
    call: (command) => {
      const progress = (value) => tell("progress", { call: command.id, value });
      return face.call(command.tool, command.arguments, command.progress ? progress : undefined);
    },
    log_level: (command) => face.logLevel(command.level),
    subscribe: (command) => face.subscribe(command.uri),
    open: async (command) => {
      face = await open(new URL(command.url));
      return { version: face.version };
    },
    close: () => face.close(),
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    const done = acts[command.do](command).then(
      (result) => write({ id: command.id, result: result ?? null }),
      (error) => write({ id: command.id, error: String(error) }),
    );
    if (command.do === "open") await done;
    if (command.do === "close") {
      await done;
      break;
    }
  }
  process.exit(0);
}
