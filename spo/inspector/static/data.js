// Server answers -> typed arrays. Numbers per token arrive as base64 of little-endian float32
// or int32, the tokens of all completions one after the other.

/** Calls a server function; a refusal becomes an Error with its sentence. */
export async function ask(server, name, query = {}) {
  const answer = await server[name](query);
  if (typeof answer !== "string") throw new Error("The server failed; its terminal says why.");
  const result = JSON.parse(answer);
  if (!result.ok) throw new Error(result.error);
  return result;
}

export function unpack(text, Kind = Float32Array) {
  if (text === null || text === undefined) return null;
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Kind(bytes.buffer);
}

/** get_credit_inputs -> what prepareStep of credit.js reads. */
export function unpackInputs(answer) {
  return {
    numGenerations: answer.num_generations,
    lengths: unpack(answer.lengths, Int32Array),
    inLoss: unpack(answer.in_loss, Int32Array),
    entropies: unpack(answer.entropies),
    values: unpack(answer.values),
    rewardPositions: unpack(answer.reward_positions, Int32Array),
    rewardValues: unpack(answer.reward_values),
    k1: unpack(answer.k1),
    boundaries: unpack(answer.boundaries, Uint8Array),
  };
}

const TOKEN_ARRAYS = {
  entropies: Float32Array,
  logprobs: Float32Array,
  logprobs_ref: Float32Array,
  values: Float32Array,
  token_rewards: Float32Array,
  token_ids: Int32Array,
  segment_ids: Int32Array,
  advantages: Float32Array,
  returns: Float32Array,
};

/** get_group -> its completions, each with its own slices of the token arrays. */
export function unpackGroup(answer) {
  const arrays = {};
  for (const [name, Kind] of Object.entries(TOKEN_ARRAYS))
    arrays[name] = unpack(answer[name], Kind);
  const hasTokens = answer.has_tokens;
  let offset = 0;
  const completions = answer.completions.map((plain) => {
    const stop = offset + plain.length;
    const completion = { ...plain, ends: unpack(plain.ends, Int32Array), hasTokens };
    for (const name of Object.keys(TOKEN_ARRAYS)) {
      completion[name] = arrays[name] && arrays[name].subarray(offset, stop);
    }
    completion.saved = { segmentIds: completion.segment_ids, advantages: completion.advantages };
    offset = stop;
    return completion;
  });
  return { ...answer, completions };
}

/** The text of token `at`; all of them join to exactly completion.text. */
export function tokenText(completion, at) {
  return completion.text.slice(at ? completion.ends[at - 1] : 0, completion.ends[at]);
}

/** Whether token `at` is the first one of its segment. */
export function startsSegment(segmentIds, at) {
  return at === 0 || segmentIds[at] !== segmentIds[at - 1];
}
