// Drives the client of @modelcontextprotocol/sdk 1.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema,
  ResourceUpdatedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { drive, filled, joined, lookingFetch, tell } from "./protocol.mjs";

await drive(async (url) => {
  const client = new Client({ name: "sdk1", version: "1" }, { capabilities: { elicitation: {}, sampling: {} } });
  client.setRequestHandler(ElicitRequestSchema, async ({ method, params }) => {
    tell("asked", { method });
    return { action: "accept", content: filled(params.requestedSchema) };
  });
  client.setRequestHandler(CreateMessageRequestSchema, async ({ method }) => {
    tell("asked", { method });
    return { role: "assistant", content: { type: "text", text: "Ada" }, model: "parrot" };
  });
  client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => tell("log", { data: params.data }));
  client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => tell("updated", { uri: params.uri }));
  client.onerror = (error) => console.error(String(error));
  const transport = new StreamableHTTPClientTransport(url, { fetch: lookingFetch });
  await client.connect(transport);
  return {
    version: transport.protocolVersion,
    list: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: async (name, args, progress) => {
      const onprogress = progress && (({ progress: value }) => progress(value));
      const result = await client.callTool({ name, arguments: args }, undefined, { onprogress });
      return { text: joined(result.content), is_error: result.isError ?? false };
    },
    logLevel: (level) => client.setLoggingLevel(level),
    subscribe: (uri) => client.subscribeResource({ uri }),
    close: async () => {
      await transport.terminateSession();
      await client.close();
    },
  };
});
