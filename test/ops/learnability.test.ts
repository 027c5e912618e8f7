import type { Program, Tensor } from '../../lib/graph';
import { compile } from '../../lib/graph';
import { drawExamples } from '../../lib/ops';
import * as reference from '../reference/learnability';
import { Random } from '../reference/random';
import { describeOp } from './describe_op';

describeOp('learnability');

interface Drawn {
  readonly indices: Tensor;
  readonly nowTaken: Tensor;
}

describe('drawExamples', () => {
  const N = 300;
  const random = new Random(11);
  const scores = Float32Array.from({ length: N }, () => random.normal());
  const taken = Uint8Array.from({ length: N }, (_, i) => (i % 3 === 0 ? 1 : 0));
  const draw = Int32Array.of(12345, 6, -7, 0);

  function program(count: number, gain: number, chunk = 0): Program<DrawSpecs, Drawn> {
    return compile(
      'draw',
      (t: DrawTensors) => drawExamples(t.scores, t.taken, t.draw, { count, gain, chunk }),
      {
        scores: { dtype: 'float32', shape: [N] },
        taken: { dtype: 'uint8', shape: [N] },
        draw: { dtype: 'int32', shape: [4] },
      },
    );
  }

  async function drawn(
    p: Program<DrawSpecs, Drawn>,
    values: { scores: Float32Array; taken: Uint8Array; draw: Int32Array },
  ): Promise<{ indices: number[]; nowTaken: number[] }> {
    const { indices, nowTaken } = await p.run(values);
    const read = {
      indices: Array.from(await indices.read()),
      nowTaken: Array.from(await nowTaken.read()),
    };
    indices.dispose();
    nowTaken.dispose();
    return read;
  }

  test.each([
    [1, 1, 0],
    [17, 4, 3],
    [200, 0.5, 15],
  ])('%d of gain %d in chunk %d', async (count, gain, chunk) => {
    const p = program(count, gain, chunk);
    const { indices, nowTaken } = await drawn(p, { scores, taken, draw });
    p.dispose();
    const noise = reference.gumbelNoise(N, draw, chunk);
    expect(indices).toEqual(reference.drawExamples(scores, taken, noise, count, gain));
    const expected = Array.from(taken);
    for (const i of indices) expected[i] = 1;
    expect(nowTaken).toEqual(expected);
  });

  test('chances are in proportion to exp(gain · score)', async () => {
    const p = program(1, 2);
    const likely = Float32Array.from({ length: N }, (_, i) => (i < 2 ? i * Math.LN2 * 0.5 : -1000));
    const none = new Uint8Array(N);
    const counts = [0, 0];
    for (let step = 0; step < 600; step++) {
      const { indices } = await drawn(p, {
        scores: likely,
        taken: none,
        draw: Int32Array.of(1, 0, step, 0),
      });
      counts[indices[0]]++;
    }
    p.dispose();
    // 400 expected, standard deviation 11.5.
    expect(Math.abs(counts[1] - 400)).toBeLessThan(50);
  });

  test('what cannot be compared comes last, then what is taken', async () => {
    const p = program(N, 1);
    const strange = Float32Array.from(scores);
    strange[1] = NaN;
    strange[2] = -Infinity;
    strange[4] = Infinity;
    const { indices } = await drawn(p, { scores: strange, taken, draw });
    p.dispose();
    expect(indices[0]).toBe(4);
    expect(indices.slice(198, 200)).toEqual([2, 1]);
    expect(indices.slice(200)).toEqual(Array.from({ length: 100 }, (_, i) => 3 * i));
    expect([...indices].sort((a, b) => a - b)).toEqual(Array.from({ length: N }, (_, i) => i));
  });
});

interface DrawSpecs {
  readonly scores: { readonly dtype: 'float32'; readonly shape: readonly number[] };
  readonly taken: { readonly dtype: 'uint8'; readonly shape: readonly number[] };
  readonly draw: { readonly dtype: 'int32'; readonly shape: readonly number[] };
}

interface DrawTensors {
  readonly scores: Tensor;
  readonly taken: Tensor;
  readonly draw: Tensor;
}
