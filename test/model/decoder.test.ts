import type { DecoderConfig, DecoderInput } from '../../lib/model';
import {
  decoder,
  decoderConfig,
  decoderInputSpecs,
  decoderParameters,
  decoderStep,
  decoderTable,
  initialValues,
  memoryCache,
  variant,
} from '../../lib/model';
import { float32 } from '../../lib/graph';
import * as ops from '../../lib/ops';
import type { Value } from '../nn/evaluate';
import {
  bytes,
  evaluate,
  integers,
  maxDifference,
  random,
  randomParameter,
  values,
} from '../nn/evaluate';

const config: DecoderConfig = {
  width: 24,
  depth: 2,
  heads: 3,
  mlpWidth: 40,
  vocabulary: 50,
  length: 7,
  memoryWidth: 20,
  attentionBias: false,
  blockBias: false,
  layerNormEps: 1e-6,
};
const { width, length, memoryWidth, vocabulary } = config;
const batch = 2;
const tokens = 5;

const ids = integers([batch, length], [0, 3, 9, 4, 1, 0, 0, 0, 8, 8, 2, 30, 1, 0]);
const mask = integers([batch, length], Array<number>(batch * length).fill(vocabulary));
const memory = random('memory', [batch, tokens, memoryWidth]);
const causal = bytes([batch], [1, 1]);
const parallel = bytes([batch], [0, 0]);

async function run(
  input: DecoderInput<Value>,
  sizes: DecoderConfig = config,
): Promise<Float32Array> {
  const parameters = decoderParameters(sizes, randomParameter);
  const { hidden } = await evaluate({ parameters, input }, (x) => ({
    hidden: decoder(x.parameters, sizes, x.input),
  }));
  return hidden;
}

/** Rows (sequence, position) of the hidden states of a batch. */
function row(hidden: Float32Array, b: number, t: number): Float32Array {
  return hidden.subarray((b * length + t) * width, (b * length + t + 1) * width);
}

describe('config', () => {
  test('is the text tower at half the depth, reading the vision tower', () => {
    expect(decoderConfig(variant('B/16'))).toEqual({
      width: 768,
      depth: 6,
      heads: 12,
      mlpWidth: 3072,
      vocabulary: 256000,
      length: 64,
      memoryWidth: 768,
      attentionBias: false,
      blockBias: false,
      layerNormEps: 1e-6,
    });
    expect(decoderConfig(variant('L/16')).depth).toBe(12);
    expect(decoderConfig(variant('So400m/14')).depth).toBe(13);
    expect(decoderConfig(variant('g-opt/16'))).toMatchObject({
      width: 1152,
      depth: 13,
      memoryWidth: 1536,
    });
    expect(decoderConfig(variant('So400m/14'), { depth: 14 }).depth).toBe(14);
  });

  test.each([
    [{ heads: 5 }, /heads must be a divisor of the width/],
    [{ depth: 0 }, /depth must be a positive integer/],
    [{ layerNormEps: 2 }, /layerNormEps must be/],
  ])('refuses %j', (overrides, message) => {
    expect(() => decoderConfig(variant('B/16'), overrides)).toThrow(message);
  });
});

describe('parameters', () => {
  test('decay exactly where big_vision has a kernel', () => {
    const decaying = decoderTable({ ...config, attentionBias: true, blockBias: true })
      .filter(({ decay }) => decay)
      .map(({ path }) => path);
    expect(decaying).toContain('decoder.head.weight');
    expect(decaying).toHaveLength(2 * (4 + 4 + 2) + 1);
    expect(decaying.every((path) => /(query|key|value|out|fc1|fc2|head)\.weight$/.test(path))).toBe(
      true,
    );
  });

  test('begin as those of CapPa', () => {
    const large = decoderTable({ ...config, vocabulary: 3000, width: 48, length: 64 });
    const deviation = (path: string): number => {
      const spec = large.find((one) => one.path === `decoder.${path}`);
      if (spec === undefined) throw new Error(`no ${path}`);
      const values = initialValues(spec, 1);
      return Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
    };
    expect(deviation('tokens')).toBeCloseTo(1, 1);
    expect(deviation('positions')).toBeCloseTo(1 / Math.sqrt(48), 2);
    expect(deviation('blocks.1.crossAttention.key.weight')).toBeCloseTo(1 / Math.sqrt(20), 1);
    expect(deviation('head.weight')).toBe(0);
    expect(large.some(({ path }) => /blocks.*bias/.test(path))).toBe(false);
    expect(large.find(({ path }) => path === 'decoder.tokens')?.shape).toEqual([3001, 48]);
  });
});

describe('modes', () => {
  test('parallel: what is to be predicted does not go in', async () => {
    const one = await run({ ids: mask, causal: parallel, memory });
    // The same for every target, as mask tokens are all there is; positions differ.
    expect(maxDifference(row(one, 0, 0), row(one, 0, 1))).toBeGreaterThan(1e-3);
    expect(maxDifference(row(one, 0, 0), row(one, 1, 0))).toBeGreaterThan(1e-3);
  });

  test('autoregressive: a token changes what comes after it, and no bit of what comes before', async () => {
    const before = await run({ ids, causal, memory });
    for (const changed of [0, 3, length - 1]) {
      const data = Int32Array.from(ids.data);
      data[changed] = 17;
      const after = await run({ ids: { ...ids, data }, causal, memory });
      for (let t = 0; t < length; t++) {
        if (t < changed) expect(row(after, 0, t)).toEqual(row(before, 0, t));
        else expect(maxDifference(row(after, 0, t), row(before, 0, t))).toBeGreaterThan(1e-4);
        expect(row(after, 1, t)).toEqual(row(before, 1, t));
      }
    }
  });

  test('each sequence has its own', async () => {
    const mixed = await run({ ids, causal: bytes([batch], [1, 0]), memory });
    const [first, second] = [
      await run({ ids, causal, memory }),
      await run({ ids, causal: parallel, memory }),
    ];
    expect(mixed.subarray(0, length * width)).toEqual(first.subarray(0, length * width));
    expect(mixed.subarray(length * width)).toEqual(second.subarray(length * width));
  });
});

describe('memory', () => {
  // The second image has three tokens.
  const counts = [tokens, 3];
  const padded = async (): Promise<Float32Array> =>
    run({
      ids,
      causal,
      memory,
      memoryMask: bytes([batch, tokens], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
    });

  test('packed is as padded', async () => {
    const rows = counts.reduce((sum, n) => sum + n, 0) + 2;
    const packed = new Float32Array(rows * memoryWidth).fill(NaN);
    packed.set(memory.data.subarray(0, 5 * memoryWidth));
    packed.set(memory.data.subarray(5 * memoryWidth, 8 * memoryWidth), 5 * memoryWidth);
    packed.fill(3, 8 * memoryWidth);
    const given = await run({
      ids,
      causal,
      memory: { dtype: 'float32', shape: [rows, memoryWidth], data: packed },
      memorySegments: integers([batch + 1], [0, 5, 8]),
    });
    expect(maxDifference(given, await padded())).toBeLessThan(1e-5);
  });

  test('what is masked has no influence', async () => {
    const data = Float32Array.from(memory.data as Float32Array);
    data.fill(1e4, 8 * memoryWidth);
    const changed = await run({
      ids,
      causal,
      memory: { ...memory, data },
      memoryMask: bytes([batch, tokens], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
    });
    expect(changed).toEqual(await padded());
  });

  test('consecutive sequences share one', async () => {
    const three = integers([3 * batch, length], [...ids.data, ...ids.data, ...ids.data]);
    const shared = await run({ ids: three, causal: bytes([6], [1, 1, 1, 0, 1, 1]), memory });
    const own = memory.data as Float32Array;
    const image = tokens * memoryWidth;
    const repeated = Float32Array.from([
      ...[0, 0, 0, 1, 1, 1].flatMap((b) => [...own.subarray(b * image, (b + 1) * image)]),
    ]);
    const apart = await run({
      ids: three,
      causal: bytes([6], [1, 1, 1, 0, 1, 1]),
      memory: { dtype: 'float32', shape: [6, tokens, memoryWidth], data: repeated },
    });
    expect(maxDifference(shared, apart)).toBeLessThan(1e-5);
  });

  test('of another width, or not as many images as divide the batch, is refused', async () => {
    await expect(
      run({ ids, causal, memory: random('m', [batch, tokens, memoryWidth + 1]) }),
    ).rejects.toThrow(/memory must be \(M, N, W\) with a width of 20/);
    await expect(
      run({ ids, causal, memory: random('m', [3, tokens, memoryWidth]) }),
    ).rejects.toThrow(/ids must have a multiple of 3 rows/);
  });
});

test('biases in attention and blocks are parameters like others', async () => {
  const biased = { ...config, attentionBias: true, blockBias: true };
  const hidden = await run({ ids, causal, memory }, biased);
  expect(maxDifference(hidden, await run({ ids, causal, memory }))).toBeGreaterThan(1e-2);
});

test('token by token gives what all at once gives, at every position', async () => {
  const parameters = decoderParameters(config, randomParameter);
  const whole = await run({ ids, causal, memory });
  // The second sequence is that of the first image's row when rows change places at the third token.
  const empty = values([batch, length, width], new Float32Array(batch * length * width));
  let cache = Array.from({ length: config.depth }, () => ({ keys: empty, values: empty }));
  for (let t = 0; t < length; t++) {
    const swapped = t >= 3;
    const at = (b: number): number => (swapped ? 1 - b : b);
    const image = tokens * memoryWidth;
    const own = memory.data as Float32Array;
    const memoryRows = Float32Array.from([
      ...own.subarray(at(0) * image, (at(0) + 1) * image),
      ...own.subarray(at(1) * image, (at(1) + 1) * image),
    ]);
    const input = {
      ids: integers([batch], [ids.data[at(0) * length + t], ids.data[at(1) * length + t]]),
      positions: integers([batch], [t, t]),
      parents: integers([batch], t === 3 ? [1, 0] : [0, 1]),
      keyMask: bytes(
        [batch, length],
        Array.from({ length: batch * length }, (_, i) => (i % length <= t ? 1 : 0)),
      ),
      cache,
      memory: { dtype: 'float32', shape: [batch, tokens, memoryWidth], data: memoryRows } as Value,
    };
    const result = await evaluate({ parameters, input }, (x) =>
      decoderStep(x.parameters, config, {
        ...x.input,
        memory: memoryCache(x.parameters, x.input.memory),
      }),
    );
    for (let b = 0; b < batch; b++) {
      const step = result.hidden.subarray(b * width, (b + 1) * width);
      expect(maxDifference(step, row(whole, at(b), t))).toBeLessThan(1e-5);
    }
    cache = cache.map((_, layer) => {
      const kept = (which: string): Value => ({
        dtype: 'float32',
        shape: [batch, length, width],
        data: result[`cache.${String(layer)}.${which}`],
      });
      return { keys: kept('keys'), values: kept('values') };
    });
  }
});

test('the specs of a batch are those that it takes', () => {
  expect(decoderInputSpecs(config, 6, [2, 9]).memory).toEqual(float32(2, 9, memoryWidth));
});

test('the loss of a vocabulary is that of all logits at once', async () => {
  const parameters = decoderParameters({ ...config, vocabulary: 2500 }, randomParameter);
  const rows = batch * length;
  const labels = integers(
    [rows],
    Array.from({ length: rows }, (_, i) => (i * 701) % 2500),
  );
  const weights = {
    dtype: 'float32',
    shape: [rows],
    data: new Float32Array(rows).fill(0.5),
  } as Value;
  const hidden = random('hidden', [rows, width]);
  const { loss, logits } = await evaluate(
    { head: parameters.head, hidden, labels, weights },
    (x) => ({
      loss: ops.vocabularyLoss(x.hidden, x.head.weight, x.head.bias, x.labels, x.weights).loss,
      logits: ops.linear(x.hidden, x.head.weight, x.head.bias),
    }),
  );
  let expected = 0;
  for (let n = 0; n < rows; n++) {
    const z = logits.subarray(n * 2500, (n + 1) * 2500);
    const max = Math.max(...z);
    const sum = z.reduce((total, value) => total + Math.exp(value - max), 0);
    expected += 0.5 * (max + Math.log(sum) - z[labels.data[n]]);
  }
  expect(Math.abs(loss[0] - expected)).toBeLessThan(1e-5 * expected);
});
