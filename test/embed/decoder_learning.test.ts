// A decoder learns what two images are and where, and then writes it: the training step, the targets and
// the search as one.
import { DeviceArray } from '../../lib/array';
import { DecoderRuns } from '../../lib/embed/decoder_runs';
import { search } from '../../lib/embed/search';
import type { ConstantSource, Spec } from '../../lib/graph';
import { disposeArrays, flatten, float32, int32 } from '../../lib/graph';
import { captionLoss } from '../../lib/loss';
import type { DecoderConfig, DecoderParameters } from '../../lib/model';
import {
  decoder,
  decoderInputSpecs,
  decoderParameters,
  decoderTable,
  initialValues,
} from '../../lib/model';
import type { CaptionExample } from '../../lib/text';
import {
  captionPrompt,
  captionTargets,
  captionText,
  groundingPrompt,
  parseBox,
} from '../../lib/text';
import { defaultCaptionFormat } from '../../lib/model';
import { compileStep, defaultOptimizer, scheduleInput } from '../../lib/train';
import { random } from '../nn/evaluate';
import { characterTokenizer } from '../text/small_tokenizer';

const tokenizer = characterTokenizer();
const examples: readonly CaptionExample[] = [
  { caption: 'a red cat', region: { box: [0, 0.5, 0.5, 1], caption: 'cat' } },
  { caption: 'two dogs', region: { box: [0.25, 0, 1, 0.75], caption: 'dog' } },
];
const config: DecoderConfig = {
  width: 32,
  depth: 1,
  heads: 2,
  mlpWidth: 64,
  vocabulary: tokenizer.vocabulary,
  length: 40,
  memoryWidth: 16,
  attentionBias: false,
  blockBias: false,
  layerNormEps: 1e-6,
};
const tokens = 4;
const memory = random('memory', [2, tokens, config.memoryWidth]).data as Float32Array;
const steps = 400;

async function train(): Promise<{ losses: number[]; parameters: DecoderParameters<DeviceArray> }> {
  const { length } = config;
  const sequences = 3 * examples.length;
  const optimizer = { ...defaultOptimizer, learningRate: 5e-3 };
  const decaying = new Set(
    decoderTable(config)
      .filter(({ decay }) => decay)
      .map(({ path }) => path),
  );
  const program = compileStep({
    name: 'learn captions',
    parameters: decoderParameters<Spec>(config, ({ dtype, shape }) => ({ dtype, shape })),
    batch: {
      ...decoderInputSpecs(config, sequences, [examples.length, tokens]),
      labels: int32(sequences, length),
      weights: float32(sequences, length),
    },
    optimizer,
    decays: (path) => decaying.has(`decoder.${path}`),
    averages: {},
    evaluate: (parameters, batch) => ({
      loss: captionLoss(decoder(parameters, config, batch), parameters.head, batch, {
        examples: examples.length,
      }),
    }),
  });
  const zeros = (): DecoderParameters<DeviceArray> =>
    decoderParameters(config, (spec) => DeviceArray.zeros(spec));
  let parameters = decoderParameters<DeviceArray>(config, (spec) =>
    DeviceArray.from(initialValues(spec, 5), spec.shape),
  );
  let state = { m: zeros(), v: zeros() };
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const draw = { seed: 1, position: step * examples.length };
    const { ids, causal, labels, weights } = captionTargets(tokenizer, examples, draw, { length });
    const outputs = await program.run({
      parameters,
      state,
      averages: {},
      schedule: scheduleInput(1, step, optimizer),
      entered: {},
      batches: [{ ids, causal, memory, labels, weights }],
    });
    ({ parameters, state } = outputs);
    losses.push((await outputs.loss.read())[0]);
    for (const scalar of ['loss', 'gradientNorm', 'updateNorm', 'parameterNorm'] as const) {
      outputs[scalar].dispose();
    }
  }
  disposeArrays(state);
  program.dispose();
  return { losses, parameters };
}

test('after training it writes the caption of each image, and where what is', async () => {
  const { losses, parameters } = await train();
  // Zero logits: every token of the three targets costs log V.
  expect(losses[0]).toBeCloseTo(3 * Math.log(config.vocabulary), 4);
  expect(Math.min(...losses)).toBeLessThan(0.5);

  const values = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(parameters, 'decoder')) {
    values.set(path, (await (leaf as DeviceArray).read()) as Float32Array);
  }
  disposeArrays(parameters);
  const sources = decoderParameters<ConstantSource>(config, ({ path, shape }) => ({
    dtype: 'float32',
    shape,
    open: () => Promise.resolve(DeviceArray.from(values.get(path) ?? new Float32Array(), shape)),
  }));
  const runs = new DecoderRuns(config, sources, 'cpu');
  const size = tokens * config.memoryWidth;
  const write = async (image: number, prompt: Int32Array, beams: number): Promise<Int32Array> => {
    const begun = await runs.begin(
      memory.subarray(image * size, (image + 1) * size),
      prompt,
      beams,
    );
    const { ids } = await search(begun.next, tokenizer.eosId, begun.left, { beams });
    begun.dispose();
    return Int32Array.from(ids);
  };
  for (const [image, { caption, region }] of examples.entries()) {
    const other = examples[1 - image];
    for (const beams of [1, 3]) {
      const written = await write(image, captionPrompt(tokenizer, 'cap'), beams);
      expect(captionText(tokenizer, written)).toBe(caption);
      const where = await write(image, groundingPrompt(tokenizer, region?.caption ?? ''), beams);
      const box = parseBox(tokenizer, where, defaultCaptionFormat) ?? [];
      expect(box).toHaveLength(4);
      box.forEach((value, i) => {
        expect(Math.abs(value - (region?.box[i] ?? NaN))).toBeLessThan(2e-3);
      });
    }
    const captions = [caption, other.caption];
    const { ids, causal, labels, weights } = captionTargets(
      tokenizer,
      captions.map((one) => ({ caption: one })),
      { seed: 1, position: 0 },
      { length: config.length, parallel: 0 },
    );
    const scores = await runs.logLikelihoods(memory.subarray(image * size, (image + 1) * size), {
      ids,
      causal,
      labels,
      weights,
    });
    // Of every example the first sequence is the caption.
    expect(scores[0]).toBeGreaterThan(scores[3]);
  }
  runs.dispose();
});
