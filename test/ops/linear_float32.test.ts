import { DeviceArray } from '../../lib/array';
import { compile } from '../../lib/graph';
import { float32 } from '../../lib/native/spec';
import { linear, packedLinear } from '../../lib/ops';
import { Random } from '../reference/random';
import { describeOp } from './describe_op';

const { bytes, pack, layer } = packedLinear.float32;

describeOp('linear_float32');

test('the bytes of a packed weight', () => {
  expect(bytes(1, 1)).toBe(4 * 64);
  expect(bytes(65, 5)).toBe(4 * 128 * 5);
  expect(bytes(2304, 768)).toBe(4 * 2304 * 768);
});

async function layers(
  rows: number,
  inputs: number,
  outputs: number,
): Promise<{ packed: Float32Array; plain: Float32Array }> {
  const random = new Random(rows);
  const x = Float32Array.from(random.array([rows, inputs], (r) => r.normal()).data);
  const weight = Float32Array.from(new Random(7).array([outputs, inputs], (r) => r.normal()).data);
  const program = compile(
    'layers',
    (t) => ({
      packed: layer(t.x, pack(t.weight), outputs),
      plain: linear(t.x, t.weight),
    }),
    { x: float32(rows, inputs), weight: float32(outputs, inputs) },
  );
  const results = await program.run({ x, weight });
  const [packed, plain] = [await results.packed.read(), await results.plain.read()];
  for (const array of Object.values(results)) array.dispose();
  program.dispose();
  return { packed: packed as Float32Array, plain: plain as Float32Array };
}

test('the bits of the layer that packs for every call', async () => {
  const { packed, plain } = await layers(70, 900, 130);
  expect(packed).toEqual(plain);
});

test('a row has the same bits whatever rows are beside it', async () => {
  const inputs = 900;
  const outputs = 130;
  const weight = DeviceArray.from(
    Float32Array.from(new Random(7).array([outputs, inputs], (r) => r.normal()).data),
    [outputs, inputs],
  );
  const x = Float32Array.from(new Random(3).array([40, inputs], (r) => r.normal()).data);
  const first: Float32Array[] = [];
  for (const rows of [1, 2, 5, 33, 40]) {
    const program = compile('rows', (t) => ({ y: layer(t.x, pack(t.weight), outputs) }), {
      x: float32(rows, inputs),
      weight: float32(outputs, inputs),
    });
    const { y } = await program.run({ x: x.slice(0, rows * inputs), weight });
    first.push((await y.read()).slice(0, outputs) as Float32Array);
    y.dispose();
    program.dispose();
  }
  weight.dispose();
  for (const row of first) expect(row).toEqual(first[0]);
});
