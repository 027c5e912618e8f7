// The loss over ranks against the float64 loss of the whole batch, for every way texts can travel, for
// even and odd numbers of ranks, with as many pairs on each or not.
import { Philox4x32 } from '../../lib/array/random';
import { DeviceArray } from '../../lib/array';
import { localRanks, startsOf } from '../../lib/comm';
import type { Communicator } from '../../lib/comm';
import { loadAddon } from '../../lib/native/load';
import type { TextExchange } from '../../lib/train';
import { LossOverRanks } from '../../lib/train';
import { describeMpi, mpirun } from '../comm/mpirun';
import { failure } from '../failure';
import { expectClose, within } from '../golden_cases/close';
import { describeGolden } from '../golden_cases/golden';
import { item, ndArray } from '../reference/nd_array';
import { sigmoidLoss, sigmoidLossBackward } from '../reference/sigmoid_loss';
import { expectGivenBack } from '../memory';

const E = 12;
const ways: readonly TextExchange[] = ['gather', 'ring', 'twoWayRing'];

interface Whole {
  readonly images: Float32Array;
  readonly texts: Float32Array;
  readonly t: number;
  readonly b: number;
}

interface Found {
  readonly losses: number[];
  readonly images: Float32Array;
  readonly texts: Float32Array;
  readonly t: number[];
  readonly b: number[];
}

function unitRows(rows: number, seed: number): Float32Array {
  const random = new Philox4x32(seed, 'loss over ranks');
  const x = Float32Array.from({ length: rows * E }, () => random.normal());
  for (let i = 0; i < rows; i++) {
    const row = x.subarray(i * E, (i + 1) * E);
    const norm = Math.hypot(...row);
    row.forEach((value, j) => (row[j] = value / norm));
  }
  return x;
}

async function onRank(
  comm: Communicator,
  whole: Whole,
  width: number,
  rows: readonly number[],
  exchange: TextExchange,
): Promise<{ loss: number; images: Float32Array; texts: Float32Array; t: number; b: number }> {
  const starts = startsOf(rows);
  const [from, to] = [starts[comm.rank] * width, starts[comm.rank + 1] * width];
  const shape = [rows[comm.rank], width];
  const loss = new LossOverRanks({ comm, rows, embedding: width, exchange });
  using texts = DeviceArray.from(whole.texts.subarray(from, to), shape);
  using images = DeviceArray.from(whole.images.subarray(from, to), shape);
  using logitScale = DeviceArray.from(Float32Array.of(whole.t));
  using logitBias = DeviceArray.from(Float32Array.of(whole.b));
  const result = await loss.run(texts, () => Promise.resolve(images), { logitScale, logitBias });
  loss.dispose();
  using dimages = result.images;
  using dtexts = result.texts;
  return {
    loss: result.loss,
    images: (await dimages.read()) as Float32Array,
    texts: (await dtexts.read()) as Float32Array,
    t: result.logitScale,
    b: result.logitBias,
  };
}

async function overRanks(
  whole: Whole,
  width: number,
  rows: readonly number[],
  exchange: TextExchange,
): Promise<Found> {
  const parts = await Promise.all(
    localRanks(rows.length).map((comm) => onRank(comm, whole, width, rows, exchange)),
  );
  const joined = (which: 'images' | 'texts'): Float32Array =>
    Float32Array.from(parts.flatMap((part) => [...part[which]]));
  return {
    losses: parts.map(({ loss }) => loss),
    images: joined('images'),
    texts: joined('texts'),
    t: parts.map(({ t }) => t),
    b: parts.map(({ b }) => b),
  };
}

const cases: readonly (readonly number[])[] = [
  [7],
  [4, 4],
  [5, 2],
  [3, 3, 3],
  [1, 4, 2],
  [2, 2, 2, 2],
  [3, 3, 3, 1],
  [2, 1, 3, 2, 1],
  [2, 2, 2, 2, 2, 2],
  [3, 3, 3, 3, 3, 3, 1],
  [2, 2, 2, 2, 2, 2, 2, 2],
  [1, 2, 3, 4, 4, 3, 2, 1],
];

describe.each(ways)('%s', (exchange) => {
  test.each(cases.map((rows) => [rows.join('+'), rows] as const))(
    'pairs %s: loss and gradients of the whole batch',
    async (_, rows) => {
      const batch = startsOf(rows)[rows.length];
      const whole = { images: unitRows(batch, 1), texts: unitRows(batch, 2), t: 1.5, b: -2 };
      const images = ndArray([batch, E], whole.images);
      const texts = ndArray([batch, E], whole.texts);
      const t = ndArray([1], [whole.t]);
      const b = ndArray([1], [whole.b]);
      const expected = sigmoidLossBackward(ndArray([1], [1]), images, texts, t, b, {
        offset: 0,
        batch,
      });
      const found = await overRanks(whole, E, rows, exchange);
      const loss = item(sigmoidLoss(images, texts, t, b, { offset: 0, batch }));
      for (const got of found.losses) expect(Math.abs(got - loss)).toBeLessThan(1e-6 * loss);
      expectClose('images', found.images, expected.dimages, within(1e-6));
      expectClose('texts', found.texts, expected.dtexts, within(1e-6));
      for (const got of found.t) expect(got).toBeCloseTo(item(expected.dlogitScale), 5);
      for (const got of found.b) expect(got).toBeCloseTo(item(expected.dlogitBias), 5);
      // Every rank has the very same numbers, and has them again.
      expect(new Set([...found.losses]).size).toBe(1);
      expect(await overRanks(whole, E, rows, exchange)).toEqual(found);
    },
  );

  test('gives back all memory', async () => {
    const whole = { images: unitRows(6, 1), texts: unitRows(6, 2), t: 1.5, b: -2 };
    await overRanks(whole, E, [2, 3, 1], exchange);
    const before = loadAddon().memory();
    await overRanks(whole, E, [2, 3, 1], exchange);
    expectGivenBack(before);
  });

  describeGolden('openclip_ring_loss', (golden) => {
    test.each([1, 2, 3, 4])('%d ranks', async (world) => {
      const [batch, width] = golden.tensor('in/image').shape;
      const whole = {
        images: Float32Array.from(golden.tensor('in/image').data),
        texts: Float32Array.from(golden.tensor('in/text').data),
        t: item(golden.tensor('in/t')),
        b: item(golden.tensor('in/b')),
      };
      const rows = Array.from({ length: world }, () => batch / world);
      const found = await overRanks(whole, width, rows, exchange);
      const check = (name: string, actual: ArrayLike<number>): void => {
        expectClose(name, actual, golden.tensor(name), within(golden.atol(name)));
      };
      check('out/closed_form/loss', [found.losses[0]]);
      check('grad_wrt/closed_form/image', found.images);
      check('grad_wrt/closed_form/text', found.texts);
      check('grad_wrt/closed_form/t', [found.t[0]]);
      check('grad_wrt/closed_form/b', [found.b[0]]);
      // The original leaves the gradients of its mean over ranks.
      const raw = golden.tensor(`grad_wrt/w${String(world)}_bidir/text_per_rank_raw`);
      const name = `grad_wrt/w${String(world)}_bidir/text_per_rank_raw`;
      expectClose(
        name,
        found.texts.map((value) => value * world),
        raw,
        within(golden.atol(name)),
      );
    });
  });
});

test('rows must be those of all ranks', async () => {
  const make = (rows: number[]): Promise<unknown> =>
    Promise.resolve().then(() => new LossOverRanks({ comm: localRanks(2)[0], rows, embedding: E }));
  expect((await failure(make([3]))).code).toBe('ERR_ARGUMENT');
  expect((await failure(make([3, 0]))).message).toMatch(/rows must be positive/);
});

describeMpi('jobs', () => {
  describeGolden('openclip_ring_loss', () => {
    test.each([1, 2, 3, 4])('%d ranks, every way', async (ranks) => {
      const { status, stderr } = await mpirun(ranks, 'test/train/loss_over_ranks_child.ts');
      expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    });
  });
});
