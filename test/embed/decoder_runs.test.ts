// A decoder as it is run for captions, against itself in one pass.
import { DeviceArray } from '../../lib/array';
import { loadAddon } from '../../lib/native/load';
import type { ConstantSource } from '../../lib/graph';
import type { DecoderConfig } from '../../lib/model';
import { decoderParameters } from '../../lib/model';
import { DecoderRuns } from '../../lib/embed/decoder_runs';
import { search } from '../../lib/embed/search';
import type { CaptionBatch } from '../../lib/text';
import { random, randomParameter } from '../nn/evaluate';

const config: DecoderConfig = {
  width: 24,
  depth: 2,
  heads: 3,
  mlpWidth: 40,
  vocabulary: 30,
  length: 9,
  memoryWidth: 20,
  attentionBias: false,
  blockBias: false,
  layerNormEps: 1e-6,
};
const END = 1;
const prompt = [7, 12, 3];
const memory = random('memory', [6, config.memoryWidth]).data as Float32Array;

let runs: DecoderRuns;
beforeAll(() => {
  const parameters = decoderParameters<ConstantSource>(config, (spec) => ({
    dtype: 'float32',
    shape: spec.shape,
    open: () =>
      Promise.resolve(DeviceArray.from(randomParameter(spec).data as Float32Array, spec.shape)),
  }));
  runs = new DecoderRuns(config, parameters, 'cpu');
});
afterAll(() => {
  runs.dispose();
});

/** The batch that scores what follows the prompt. */
function scored(found: readonly (readonly number[])[]): CaptionBatch {
  const { length } = config;
  const labels = new Int32Array(found.length * length);
  const ids = new Int32Array(labels.length);
  const weights = new Float32Array(labels.length);
  found.forEach((tokens, row) => {
    const whole = [...prompt, ...tokens, END].slice(0, length);
    labels.set(whole, row * length);
    ids.set(whole.slice(0, length - 1), row * length + 1);
    weights.fill(1, row * length + prompt.length, row * length + whole.length);
  });
  return { ids, labels, weights, causal: new Uint8Array(found.length).fill(1) };
}

test.each([{ beams: 1 }, { beams: 3 }, { temperature: 1, seed: 4 }])(
  '%j: the probability of what was written is that of one pass over it',
  async (options) => {
    const sequences = await runs.begin(memory, prompt, options.beams ?? 1);
    const { ids, logProbability } = await search(sequences.next, END, sequences.left, options);
    sequences.dispose();
    expect(ids.length).toBeGreaterThan(0);
    const [expected] = await runs.logLikelihoods(memory, scored([ids]));
    expect(logProbability).toBeCloseTo(expected, 4);
  },
);

test('more beams find nothing less likely here, and every sequence starts alike', async () => {
  const found = [];
  for (const beams of [1, 8]) {
    const sequences = await runs.begin(memory, prompt, beams);
    found.push(await search(sequences.next, END, sequences.left, { beams }));
    sequences.dispose();
  }
  expect(found[1].logProbability).toBeGreaterThanOrEqual(found[0].logProbability - 1e-5);
});

test('captions are scored side by side as one by one', async () => {
  const all = [[4, 5], [9], [2, 2, 2, 8]];
  const together = await runs.logLikelihoods(memory, scored(all));
  for (const [i, one] of all.entries()) {
    const [alone] = await runs.logLikelihoods(memory, scored([one]));
    expect(together[i]).toBeCloseTo(alone, 4);
    expect(alone).toBeLessThan(0);
  }
});

test('leaves no arrays behind', async () => {
  const write = async (): Promise<void> => {
    const sequences = await runs.begin(memory, prompt, 2);
    await search(sequences.next, END, sequences.left, { beams: 2 });
    sequences.dispose();
  };
  await write();
  const before = loadAddon().memory().buffers;
  await write();
  expect(loadAddon().memory().buffers).toBe(before);
});
