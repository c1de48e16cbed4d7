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

/** get_credit_inputs -> what prepareStep of credit.js reads. */
export function unpackInputs(answer) {
  return {
    numGenerations: answer.num_generations,
    lengths: unpack(answer.lengths, Int32Array),
    inLoss: unpack(answer.in_loss, Int32Array),
    inMean: unpack(answer.in_mean, Int32Array),
    rowAdvantages: unpack(answer.row_advantages),
    entropies: unpack(answer.entropies),
    values: unpack(answer.values),
    rewardPositions: unpack(answer.reward_positions, Int32Array),
    rewardValues: unpack(answer.reward_values),
    boundaries: unpack(answer.boundaries, Uint8Array),
    actions: unpack(answer.actions, Uint8Array),
  };
}

const FLOATS = "entropies logprobs logprobs_ref values token_rewards advantages returns".split(" ");
const INTEGERS = ["token_ids", "segment_ids"];

/** get_group -> its completions, each with its own slices of the token arrays. */
export function unpackGroup(answer) {
  const arrays = {};
  for (const name of FLOATS) arrays[name] = unpack(answer[name]);
  for (const name of INTEGERS) arrays[name] = unpack(answer[name], Int32Array);
  const { has_tokens: hasTokens } = answer;
  const actions = unpack(answer.actions, Uint8Array); // null: the policy chose every token
  const sources = Object.entries(answer.values_by_source).map(([name, x]) => [name, unpack(x)]);
  let offset = 0;
  const completions = answer.completions.map((plain, index) => {
    const stop = offset + plain.length;
    const completion = { ...plain, ends: unpack(plain.ends, Int32Array), hasTokens };
    completion.fork = answer.forks[index];
    completion.actions = actions && actions.subarray(offset, stop);
    completion.sources = sources.map(([name, x]) => [name, x.subarray(offset, stop)]);
    for (const name of [...FLOATS, ...INTEGERS])
      completion[name] = arrays[name] && arrays[name].subarray(offset, stop);
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
