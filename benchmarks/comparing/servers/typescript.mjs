// The TypeScript SDK on node:http, as its documentation has it.
//
//   node typescript.mjs PORT stateless|stateful
//
// Without sessions every request has a server and a transport of its own, and the answer is JSON; in sessions it is an
// event stream, which is this SDK's default.

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { z } from "zod";

const [port, state] = process.argv.slice(2);
const MANY = Number(process.env.BENCH_TOOLS ?? 0);

const sessions = new Map(); // session id → its server and transport
const listeners = new Set(); // servers that want to hear of broadcasts

const number = z.number().int();
const sum = ({ a, b }) => ({ content: [{ type: "text", text: String(a + b) }], structuredContent: { result: a + b } });
const text = (value) => ({ content: [{ type: "text", text: value }] });

function makeServer() {
  const server = new McpServer({ name: "benchmark", version: "1" }, { capabilities: { resources: {} } });
  for (const name of ["add", "add_sync"]) {
    const schemas = { inputSchema: { a: number, b: number }, outputSchema: { result: number } };
    server.registerTool(name, { description: "Add two whole numbers.", ...schemas }, sum);
  }
  server.registerTool("progress", { description: "Report progress.", inputSchema: { n: number } }, async ({ n }, extra) => {
    const progressToken = extra._meta?.progressToken;
    for (let progress = 1; progress <= n; progress++) {
      const params = { progressToken, progress, total: n };
      await extra.sendNotification({ method: "notifications/progress", params });
    }
    return text("done");
  });
  server.registerTool("join", { description: "Be told of broadcasts." }, () => {
    listeners.add(server);
    return text(String(listeners.size));
  });
  const round = { description: "Tell all.", inputSchema: { number } };
  server.registerTool("tell_all", round, async ({ number }) => {
    for (const each of listeners) await each.server.sendResourceUpdated({ uri: `bench://round/${number}/` });
    return text("done");
  });
  for (let i = 0; i < MANY; i++) {
    const inputSchema = { count: number, text: z.string().default(""), exact: z.boolean().default(false) };
    const description = `Do what tool ${i} does, which is nothing that anybody needs.`;
    server.registerTool(`tool_${i}`, { description, inputSchema }, async ({ count }) => text(`${i} ${count}`));
  }
  return server;
}

async function serveAlone(request, response) {
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true });
  const server = makeServer();
  response.on("close", () => {
    transport.close();
    server.close();
  });
  await server.connect(transport);
  await transport.handleRequest(request, response);
}

async function serveInSession(request, response) {
  const id = request.headers["mcp-session-id"];
  if (id !== undefined) {
    const found = sessions.get(id);
    if (found === undefined) response.writeHead(404).end();
    else await found.transport.handleRequest(request, response);
    return;
  }
  const server = makeServer();
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => randomUUID(),
    onsessioninitialized: (made) => sessions.set(made, { server, transport }),
  });
  await server.connect(transport);
  await transport.handleRequest(request, response);
}

const serve = state === "stateless" ? serveAlone : serveInSession;
createServer((request, response) => {
  if (request.url !== "/mcp") response.writeHead(404).end();
  else serve(request, response).catch((error) => response.writeHead(500).end(String(error)));
}).listen(Number(port), "127.0.0.1");
