// The sigmoid loss as its sources define it: the value at initialisation for batches up to the
// published one, the memory that makes such a batch possible, and a batch spread over ranks.
import type { Spec } from '../../lib/graph';
import type { Program, Tensor } from '../../lib/graph';
import { compile, float32, gradient } from '../../lib/graph';
import { sigmoidLoss } from '../../lib/ops';
import type { NdArray } from '../reference/nd_array';
import { item, ndArray } from '../reference/nd_array';
import { expectClose, within } from './close';
import { describeGolden } from './golden';

interface LossSpecs {
  readonly images: Spec;
  readonly texts: Spec;
  readonly logitScale: Spec;
  readonly logitBias: Spec;
}

interface LossOutputs {
  readonly loss: Tensor;
  readonly gradients: LossTensors;
}

interface LossTensors {
  readonly images: Tensor;
  readonly texts: Tensor;
  readonly logitScale: Tensor;
  readonly logitBias: Tensor;
}

/** Loss and gradients of a block of R images and C texts. */
function lossProgram(
  R: number,
  C: number,
  E: number,
  options: { offset?: number; batch?: number } = {},
): Program<LossSpecs, LossOutputs> {
  return compile(
    'loss',
    (inputs: LossTensors) => {
      const { images, texts, logitScale, logitBias } = inputs;
      const loss = sigmoidLoss(images, texts, logitScale, logitBias, options);
      return { loss, gradients: gradient(loss, inputs) };
    },
    { images: float32(R, E), texts: float32(C, E), logitScale: float32(1), logitBias: float32(1) },
  );
}

interface LossValues {
  readonly loss: number;
  readonly images: Float32Array;
  readonly texts: Float32Array;
  readonly logitScale: number;
  readonly logitBias: number;
}

async function runLoss(
  program: Program<LossSpecs, LossOutputs>,
  images: Float32Array,
  texts: Float32Array,
  t: number,
  b: number,
): Promise<LossValues> {
  const { loss, gradients } = await program.run({
    images,
    texts,
    logitScale: Float32Array.of(t),
    logitBias: Float32Array.of(b),
  });
  const values = {
    loss: (await loss.read())[0],
    images: Float32Array.from(await gradients.images.read()),
    texts: Float32Array.from(await gradients.texts.read()),
    logitScale: (await gradients.logitScale.read())[0],
    logitBias: (await gradients.logitBias.read())[0],
  };
  for (const array of [loss, ...Object.values(gradients)]) array.dispose();
  return values;
}

/** Rows that are all the unit vector of one axis. */
function axisRows(rows: number, E: number, axis: number): Float32Array {
  const x = new Float32Array(rows * E);
  for (let i = 0; i < rows; i++) x[i * E + axis] = 1;
  return x;
}

describe('sigmoid loss', () => {
  // L = softplus(10) + (B − 1) softplus(−10) and db = B σ(−10) − 1 where every similarity is zero.
  test.each([
    [4, 10.00018, -0.99982],
    [256, 10.01162, -0.988378],
    [1024, 10.04649, -0.953513],
    [32768, 11.48763, 0.487597],
  ])('at initialisation, batch %d', async (batch, loss, db) => {
    const E = 4;
    const program = lossProgram(batch, batch, E);
    const values = await runLoss(
      program,
      axisRows(batch, E, 0),
      axisRows(batch, E, 1),
      Math.LN10,
      -10,
    );
    program.dispose();
    expect(values.loss).toBeCloseTo(loss, 5);
    expect(values.logitBias).toBeCloseTo(db, 5);
    expect(values.logitScale).toBeCloseTo(0, 6);
  });

  test('plans memory linear in the batch', () => {
    const E = 64;
    const bytes = [4096, 8192, 16384, 32768].map((batch) => {
      const program = lossProgram(batch, batch, E);
      const { peakBytes } = program.memory;
      program.dispose();
      return peakBytes;
    });
    for (let i = 1; i < bytes.length; i++) expect(bytes[i]).toBeLessThan(2.1 * bytes[i - 1]);
    // Embeddings, gradients and a little: nowhere near the 4 GiB of a logit matrix.
    expect(bytes[bytes.length - 1]).toBeLessThan(8 * 32768 * E * 4);
  });
});

function block(x: NdArray, from: number, to: number): Float32Array {
  const E = x.shape[1];
  return Float32Array.from(x.data.subarray(from * E, to * E));
}

describeGolden('openclip_ring_loss', (golden) => {
  const read = (name: string): NdArray => golden.tensor(name);

  // Rank r meets the texts of every rank c: a block of the matrix whose positives begin at column
  // (r − c) β, which is outside of the block unless r = c.
  test.each([1, 2, 3, 4])('%d ranks: the blocks add up to the whole', async (world) => {
    const images = read('in/image');
    const texts = read('in/text');
    const [batch, E] = images.shape;
    const t = item(read('in/t'));
    const b = item(read('in/b'));
    const beta = batch / world;
    const sum = {
      loss: new Float64Array(1),
      images: new Float64Array(batch * E),
      texts: new Float64Array(batch * E),
      t: new Float64Array(1),
      b: new Float64Array(1),
    };
    const lossPerRank = new Float64Array(world);
    for (let r = 0; r < world; r++) {
      for (let c = 0; c < world; c++) {
        const program = lossProgram(beta, beta, E, { offset: (r - c) * beta, batch });
        const part = await runLoss(
          program,
          block(images, r * beta, (r + 1) * beta),
          block(texts, c * beta, (c + 1) * beta),
          t,
          b,
        );
        program.dispose();
        sum.loss[0] += part.loss;
        sum.t[0] += part.logitScale;
        sum.b[0] += part.logitBias;
        part.images.forEach((value, i) => (sum.images[r * beta * E + i] += value));
        part.texts.forEach((value, i) => (sum.texts[c * beta * E + i] += value));
        lossPerRank[r] += part.loss * world; // the original divides by the rank's own rows
      }
    }
    const check = (name: string, actual: ArrayLike<number>): void => {
      expectClose(name, actual, read(name), within(golden.atol(name)));
    };
    check('out/closed_form/loss', sum.loss);
    check('grad_wrt/closed_form/image', sum.images);
    check('grad_wrt/closed_form/text', sum.texts);
    check('grad_wrt/closed_form/t', sum.t);
    check('grad_wrt/closed_form/b', sum.b);
    check(`out/w${String(world)}_bidir/loss_per_rank`, lossPerRank);
  });

  test('rows of one rank against all texts', async () => {
    const images = read('in/image');
    const texts = read('in/text');
    const [batch, E] = images.shape;
    const from = 9;
    const to = 14;
    const program = lossProgram(to - from, batch, E, { offset: from, batch });
    const part = await runLoss(
      program,
      block(images, from, to),
      block(texts, 0, batch),
      item(read('in/t')),
      item(read('in/b')),
    );
    program.dispose();
    const name = 'grad_wrt/closed_form/image';
    const whole = block(read(name), from, to);
    expectClose(name, part.images, ndArray([to - from, E], whole), within(golden.atol(name)));
  });
});
