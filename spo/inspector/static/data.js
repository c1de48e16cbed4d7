// Server answers -> typed arrays. Numbers of the tokens of all completions arrive as base64.

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

const KINDS = { boundaries: Uint8Array, actions: Uint8Array };
for (const name of ["lengths", "in_loss", "reward_positions", "token_ids", "segment_ids"])
  KINDS[name] = Int32Array;

/** get_credit_inputs -> what prepareStep of credit.js reads. */
export function unpackInputs({ ok, ...answer }) {
  const arrays = Object.entries(answer).map(([name, text]) => [name, unpack(text, KINDS[name])]);
  return Object.fromEntries(arrays);
}

const BY_TOKEN = ["token_ids", "segment_ids", "entropies", "logprobs", "logprobs_ref", "values"];
BY_TOKEN.push("token_rewards", "advantages", "returns", "actions"); // no actions: all the policy's

/** get_group -> its completions, each with its own slices of the token arrays. */
export function unpackGroup(answer) {
  const arrays = BY_TOKEN.map((name) => [name, unpack(answer[name], KINDS[name])]);
  const { has_tokens: hasTokens } = answer;
  const sources = Object.entries(answer.values_by_source).map(([name, x]) => [name, unpack(x)]);
  let offset = 0;
  const completions = answer.completions.map((plain, index) => {
    const stop = offset + plain.length;
    const completion = { ...plain, ends: unpack(plain.ends, Int32Array), hasTokens };
    completion.fork = answer.forks[index];
    completion.sources = sources.map(([name, x]) => [name, x.subarray(offset, stop)]);
    for (const [name, array] of arrays) completion[name] = array && array.subarray(offset, stop);
    completion.saved = { segmentIds: completion.segment_ids, advantages: completion.advantages };
    offset = stop;
    return completion;
  });
  return { ...answer, completions };
}

/** The text of token `at`; all of them join to exactly completion.text. */
export const tokenText = ({ text, ends }, at) => text.slice(at ? ends[at - 1] : 0, ends[at]);

/** Whether token `at` is the first one of its segment. */
export const startsSegment = (ids, at) => at === 0 || ids[at] !== ids[at - 1];
