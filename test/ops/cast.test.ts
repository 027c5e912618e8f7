import { DeviceArray } from '../../lib/array';
import { bfloat16, compile, float32 } from '../../lib/graph';
import { cast } from '../../lib/ops';
import { describeOp } from './describe_op';

describeOp('cast');

test('the bits: ties go to even, infinities stay, what is too large becomes one, NaN stays', async () => {
  const tie = 1 + 2 ** -8;
  const x = [1, -0, tie, tie + 2 ** -7, Infinity, -Infinity, 3.4e38, 1e-40, NaN];
  const program = compile('narrow', (t) => ({ y: cast(t.x, 'bfloat16') }), {
    x: float32(x.length),
  });
  const { y } = await program.run({ x: Float32Array.from(x) });
  expect([...(await y.read())].map((bits) => bits.toString(16))).toEqual([
    '3f80',
    '8000',
    '3f80',
    '3f82',
    '7f80',
    'ff80',
    '7f80',
    '1',
    '7fc0',
  ]);
  y.dispose();
  program.dispose();
});

test('a NaN whose upper bits are none stays one', async () => {
  const program = compile('narrow', (t) => ({ y: cast(t.x, 'bfloat16') }), { x: float32(1) });
  using x = DeviceArray.from(new Float32Array(Uint32Array.of(0x7f800001).buffer));
  const { y } = await program.run({ x });
  expect([...(await y.read())]).toEqual([0x7fc0]);
  y.dispose();
  program.dispose();
});

test('every bfloat16 comes back', async () => {
  const program = compile('both', (t) => ({ y: cast(cast(t.x, 'float32'), 'bfloat16') }), {
    x: bfloat16(256, 256),
  });
  const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const { y } = await program.run({ x: bits });
  const isNan = (b: number): boolean => (b & 0x7fff) > 0x7f80;
  const quiet = bits.map((b) => (isNan(b) ? b | 0x40 : b));
  expect(await y.read()).toEqual(quiet);
  y.dispose();
  program.dispose();
});
