// The op test: every case of one operation, held to the float64 reference and to itself.
import type { SiglipErrorCode } from '../../lib/errors';
import type { Spec } from '../../lib/graph';
import { compile, gradient } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import { dot } from '../../lib/ops';
import type { Arrays, OpCase, Tensors } from '../op_cases';
import { forwardProgram, opCases, specsOf, splitCases, valuesOf } from '../op_cases';
import type { NdArray } from '../reference/nd_array';
import { inner, map, maxAbs, zip } from '../reference/nd_array';
import type { Results } from './run_case';
import { directionsOf, expectWithin, randomOf, runForward, runGradient } from './run_case';

// Central differences in float64 with this step are good to about its square.
const DIFFERENCE_STEP = 1e-5;
const DIFFERENCE_RELATIVE = 1e-5;
const DIFFERENCE_ABSOLUTE = 1e-6;

/** ⟨u, J v⟩ of the reference by a central difference. */
function difference(c: OpCase, values: Arrays, u: Arrays, v: Arrays): number {
  const moved = (step: number): Arrays =>
    c.reference(
      Object.fromEntries(
        Object.entries(values).map(([name, x]) => [
          name,
          name in v ? zip(x, v[name], (a, b) => a + step * b) : x,
        ]),
      ),
    );
  const ahead = moved(DIFFERENCE_STEP);
  const behind = moved(-DIFFERENCE_STEP);
  return Object.entries(u).reduce(
    (sum, [name, direction]) =>
      sum +
      inner(
        direction,
        zip(ahead[name], behind[name], (a, b) => (a - b) / (2 * DIFFERENCE_STEP)),
      ),
    0,
  );
}

function codeOf(body: () => unknown): SiglipErrorCode | 'none' {
  try {
    body();
    return 'none';
  } catch (error) {
    if (error instanceof Error && 'code' in error) return error.code as SiglipErrorCode;
    throw error;
  }
}

const OTHER_DTYPE = {
  float32: 'int32',
  int32: 'float32',
  uint8: 'float32',
  bfloat16: 'float32',
} as const;

function describeCase(c: OpCase): void {
  const random = randomOf(c);
  const values = valuesOf(c, random);
  const expected = c.reference(values);
  const { backward } = c;
  // Without this every later test of the case would fail on its own for one cause.
  let forward: Results[] = [];
  let gradients: Results[] = [];
  const draw = (x: NdArray): NdArray => random.array(x.shape, (r) => r.normal());
  const u = directionsOf(expected, random);
  const before = { buffers: 0, bufferBytes: 0, arenaBytes: 0 };
  const after = { ...before };

  beforeAll(async () => {
    Object.assign(before, loadAddon().memory());
    forward = await runForward(c, values);
    if (backward !== undefined) gradients = await runGradient(c, values, u);
    Object.assign(after, loadAddon().memory());
  });

  test('forward is that of the reference', () => {
    for (const [name, y] of Object.entries(expected)) expectWithin(name, c, forward[0][name], y);
  });

  test('repeats bit for bit', () => {
    expect(forward[1]).toEqual(forward[0]);
    expect(gradients[1]).toEqual(gradients[0]);
  });

  // Less is no leak: the collector may have found what a failed test before left.
  test('leaves no memory behind', () => {
    expect(after.buffers).toBeLessThanOrEqual(before.buffers);
    expect(after.bufferBytes).toBeLessThanOrEqual(before.bufferBytes);
    // Beside programs that other files of tests left, the arena shrinks only by half or more.
    expect(after.arenaBytes).toBeLessThanOrEqual(2 * before.arenaBytes);
  });

  if (backward === undefined) return;

  test('gradient is that of the reference', () => {
    const reference = backward(u, values);
    expect(Object.keys(gradients[0]).sort()).toEqual(Object.keys(reference).sort());
    for (const [name, dx] of Object.entries(reference)) {
      expectWithin(`gradient of ${name}`, c, gradients[0][name], dx);
    }
  });

  // A large case says nothing more here than the small ones of its operation, and takes long.
  if (c.kink || splitCases.includes(c)) return;

  test('⟨u, J v⟩ = ⟨Jᵀu, v⟩ in a random direction', () => {
    const reference = backward(u, values);
    // A direction as large as the operand itself, so that one step suits tiny and large values.
    const v = Object.fromEntries(
      Object.entries(reference).map(([name, dx]) => {
        const size = maxAbs(values[name]);
        return [name, map(draw(dx), (value) => value * (size > 0 ? size : 1))];
      }),
    );
    const forwards = difference(c, values, u, v);
    let scale = 0;
    let backwards = 0;
    for (const [name, direction] of Object.entries(v)) {
      const products = direction.data.map((value, i) => value * gradients[0][name][i]);
      backwards += products.reduce((sum, product) => sum + product, 0);
      scale = products.reduce((sum, product) => sum + Math.abs(product), scale);
    }
    expect(Math.abs(backwards - forwards)).toBeLessThanOrEqual(
      c.condition * (DIFFERENCE_RELATIVE * (scale + Math.abs(forwards)) + DIFFERENCE_ABSOLUTE),
    );
  });
}

function describeRefusals(c: OpCase): void {
  for (const shapes of c.refuses) {
    const replaced = Object.entries(shapes).map(([name, shape]): [string, Spec] => [
      name,
      { dtype: c.operands[name].spec.dtype, shape },
    ]);
    const text = replaced.map(([name, { shape }]) => `${name} [${shape.join(', ')}]`).join(', ');
    test(`${text} is ERR_SHAPE`, () => {
      const specs = specsOf(c, Object.fromEntries(replaced));
      expect(codeOf(() => forwardProgram(c, specs))).toBe('ERR_SHAPE');
    });
  }
  for (const [name, { spec }] of Object.entries(c.operands)) {
    const dtype = OTHER_DTYPE[spec.dtype];
    if (c.op === 'reshape') continue; // renames memory of any dtype
    test(`${name} ${dtype} is ERR_DTYPE`, () => {
      const specs = specsOf(c, { [name]: { dtype, shape: spec.shape } });
      expect(codeOf(() => forwardProgram(c, specs))).toBe('ERR_DTYPE');
    });
  }
}

function describeEmpty(c: OpCase): void {
  for (const [name, { spec }] of Object.entries(c.operands)) {
    test(`${name} without elements is ERR_SHAPE`, () => {
      const empty = { dtype: spec.dtype, shape: [0, ...spec.shape.slice(1)] };
      expect(codeOf(() => forwardProgram(c, specsOf(c, { [name]: empty })))).toBe('ERR_SHAPE');
    });
  }
}

function describeNotDifferentiable(c: OpCase): void {
  // An operation may declare that gradients end there (pixels); a silent zero is the other way out.
  const float = Object.keys(c.operands).filter((name) => c.operands[name].spec.dtype === 'float32');
  test('a gradient asked through it is refused', () => {
    const body = (): unknown =>
      compile(
        'gradient',
        (tensors: Tensors) => {
          const [first] = Object.values(c.apply(tensors));
          return gradient(
            dot(first, first),
            float.map((name) => tensors[name]),
          );
        },
        specsOf(c),
      );
    expect(codeOf(body)).toBe('ERR_NOT_DIFFERENTIABLE');
  });
}

/** Tests all cases of an operation, and once what it must refuse. */
export function describeOp(op: string): void {
  const cases = opCases.filter((c) => c.op === op);
  if (cases.length === 0) throw new Error(`describeOp: op must have cases, got ${op}`);
  describe(op, () => {
    for (const c of [...cases, ...splitCases.filter((split) => split.op === op)]) {
      describe(c.name, () => {
        describeCase(c);
      });
    }
    describe('refuses', () => {
      const shown = new Set<string>();
      for (const c of cases) {
        // Cases of one form differ in sizes only; one of each is enough.
        const form = Object.keys(c.operands).join(' ');
        if (shown.has(form)) continue;
        shown.add(form);
        describe(c.name, () => {
          describeRefusals(c);
          describeEmpty(c);
          if (c.backward === undefined && op !== 'normalize_pixels') describeNotDifferentiable(c);
        });
      }
    });
  });
}
