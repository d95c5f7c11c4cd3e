// Drives the client of @modelcontextprotocol/client 2: `node client2.mjs legacy|auto`.

import { Client, LOG_LEVEL_META_KEY, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { drive, filled, joined, lookingFetch, tell } from "./protocol.mjs";

const MODERN = "2026-07-28";
const [mode] = process.argv.slice(2);

await drive(async (url) => {
  const client = new Client(
    { name: "client2", version: "1" },
    { capabilities: { elicitation: {}, sampling: {} }, versionNegotiation: { mode } },
  );
  client.setRequestHandler("elicitation/create", async ({ method, params }) => {
    tell("asked", { method });
    return { action: "accept", content: filled(params.requestedSchema) };
  });
  client.setRequestHandler("sampling/createMessage", async ({ method }) => {
    tell("asked", { method });
    return { role: "assistant", content: { type: "text", text: "Ada" }, model: "parrot" };
  });
  client.setNotificationHandler("notifications/message", ({ params }) => tell("log", { data: params.data }));
  client.setNotificationHandler("notifications/resources/updated", ({ params }) => tell("updated", { uri: params.uri }));
  client.onerror = (error) => console.error(String(error));
  const transport = new StreamableHTTPClientTransport(url, { fetch: lookingFetch });
  await client.connect(transport);
  const version = client.getNegotiatedProtocolVersion();
  const modern = version === MODERN;
  let level;
  return {
    version,
    list: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: async (name, args, progress) => {
      const onprogress = progress && (({ progress: value }) => progress(value));
      // At 2026-07-28 each request carries the level.
      const _meta = level && { [LOG_LEVEL_META_KEY]: level };
      const result = await client.callTool({ name, arguments: args, ...(_meta && { _meta }) }, { onprogress });
      return { text: joined(result.content), is_error: result.isError ?? false };
    },
    logLevel: async (wanted) => {
      if (modern) level = wanted;
      else await client.setLoggingLevel(wanted);
    },
    subscribe: async (uri) => {
      if (!modern) return client.subscribeResource({ uri });
      const subscription = await client.listen({ resourceSubscriptions: [uri] });
      subscription.closed.then((why) => why === "local" || tell("subscription lost", { why }));
    },
    close: async () => {
      if (!modern) await transport.terminateSession();
      await client.close();
    },
  };
});
