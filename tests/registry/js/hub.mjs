// The flows of @huggingface/hub against the registry at $REGISTRY; downloads go to $FOLDER. Results: JSON on stdout.
import * as hub from "@huggingface/hub";

const hubUrl = process.env.REGISTRY;
const repo = "test/small";
const given = { repo, hubUrl };
const all = async (entries) => {
  const found = [];
  for await (const entry of entries) found.push(entry);
  return found;
};
const text = async (path, more = {}) => (await hub.downloadFile({ ...given, path, ...more }))?.text() ?? null;
const failure = async (request) => {
  try {
    await request;
    return "none";
  } catch (error) {
    return [error.constructor.name, error.statusCode];
  }
};

console.debug = () => {}; // snapshotDownload reports each file
const info = await hub.modelInfo({ name: repo, hubUrl, additionalFields: ["sha", "tags", "cardData", "library_name", "filePaths"] });
const tensors = await hub.parseSafetensorsMetadata({ ...given, computeParametersCount: true });
const weights = await hub.downloadFile({ ...given, path: "model.safetensors" });
const snapshot = await hub.snapshotDownload({ ...given, cacheDir: process.env.FOLDER });

console.log(
  JSON.stringify({
    info: { name: info.name, task: info.task, sha: info.sha, library: info.library_name, license: info.cardData.license },
    id: /^[0-9a-f]{24}$/.test(info.id),
    paths: info.filePaths,
    exists: await Promise.all(["config.json", "model.safetensors", "none"].map((path) => hub.fileExists({ ...given, path }))),
    repos: [await hub.repoExists(given), await hub.repoExists({ hubUrl, repo: "test/none" })],
    access: await failure(hub.checkRepoAccess(given)),
    raw: await text("model.safetensors", { raw: true }),
    small: await text("1_Pooling/config.json"),
    rawSmall: await text("1_Pooling/config.json", { raw: true }),
    missing: await text("none"),
    download: { size: weights.size, start: [...new Uint8Array(await weights.slice(0, 8).arrayBuffer())] },
    whole: (await weights.arrayBuffer()).byteLength,
    etag: (await hub.fileDownloadInfo({ ...given, path: "config.json" })).etag,
    tensors: { sharded: tensors.sharded, names: Object.keys(tensors.header), count: tensors.parameterCount },
    files: (await all(hub.listFiles({ ...given, recursive: true, expand: true }))).map((entry) => entry.path),
    pathsInfo: (await hub.pathsInfo({ ...given, paths: ["config.json", "none"] })).map((entry) => entry.path),
    commits: (await all(hub.listCommits(given))).map((commit) => commit.oid),
    count: await hub.countCommits(given),
    models: (await all(hub.listModels({ hubUrl, search: { task: "text-generation" } }))).map((model) => model.name),
    none: await all(hub.listModels({ hubUrl, search: { tags: ["no-such-tag"] } })),
    otherCase: (await hub.modelInfo({ name: "Test/Small", hubUrl })).name,
    short: (await hub.modelInfo({ name: repo, hubUrl, revision: info.sha.slice(0, 8), additionalFields: ["sha"] })).sha,
    noRepository: await failure(hub.modelInfo({ name: "test/none", hubUrl })),
    noRevision: await failure(all(hub.listFiles({ ...given, revision: "none" }))),
    snapshot,
  }),
);
