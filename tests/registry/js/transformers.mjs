// The flows of @huggingface/transformers against the registry at $REGISTRY, as its documentation says for one's own
// host (https://huggingface.co/docs/transformers.js/custom_usage). Results: JSON on stdout.
import { AutoConfig, AutoTokenizer, env, pipeline } from "@huggingface/transformers";

env.remoteHost = process.env.REGISTRY;
env.allowLocalModels = false;
env.cacheDir = process.env.FOLDER;

const repo = "test/small";
const config = await AutoConfig.from_pretrained(repo);
const tokenizer = await AutoTokenizer.from_pretrained(repo, { revision: process.env.COMMIT });
const embed = await pipeline("feature-extraction", repo, { dtype: "fp32" });
const vectors = await embed("hello world", { pooling: "none" });

console.log(
  JSON.stringify({
    type: config.model_type,
    ids: (await tokenizer("hello world")).input_ids.tolist()[0].map(Number),
    shape: vectors.dims,
    values: vectors.tolist()[0],
  }),
);
