// In place of @huggingface/xetchunk-wasm, which needs a bundler: only uploads use it.
export const MerkleHashSubtree = null, createChunker = null, fileHash = null, finalize = null, hashToHex = null;
export const hexToBytes = null, hmac = null, nextBlock = null, verificationHash = null, xorbHash = null;
