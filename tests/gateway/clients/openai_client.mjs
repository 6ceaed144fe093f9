// The flows of OpenAI's JavaScript client against the gateway at $GATEWAY. What they gave goes to stdout as JSON.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.env.GATEWAY}/v1`, apiKey: "sesame", maxRetries: 0, timeout: 20_000 });
const messages = [{ role: "user", content: "Hi" }];
const found = {};

found.models = (await client.models.list()).data.map((model) => model.id);

const chat = await client.chat.completions.create({ model: "fast", messages }).withResponse();
found.chat = chat.data.choices[0].message.content;
found.served = chat.response.headers.get("x-served-model");

found.stream = "";
for await (const chunk of await client.chat.completions.create({ model: "qwen", messages, stream: true })) {
  found.stream += chunk.choices[0].delta.content ?? "";
}

found.embedding = (await client.embeddings.create({ model: "minilm", input: ["a", "b"] })).data[1].embedding;

const file = await toFile(Buffer.alloc(100_000), "a.wav");
found.transcription = (await client.audio.transcriptions.create({ model: "whisper", file })).text;

const failure = async (request) => {
  try {
    await request;
    return "none";
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
};
found.unknown = await failure(client.chat.completions.create({ model: "gpt-none", messages }));
const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "bad", maxRetries: 0 });
found.stranger = await failure(stranger.chat.completions.create({ model: "qwen", messages }));

// The backend of this model says one word and then waits: until the client leaves.
const endless = await client.chat.completions.create({ model: "tinyllama", messages, stream: true });
for await (const chunk of endless) {
  found.before = chunk.choices[0].delta.content;
  if (found.before) endless.controller.abort();
}

console.log(JSON.stringify(found));
