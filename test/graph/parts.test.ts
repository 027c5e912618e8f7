// A program in parts gives what the whole gives, bit for bit, though what its parts read comes and goes.
import { DeviceArray } from '../../lib/array';
import type { PartsOptions, ProgramInParts, Spec, Tensor } from '../../lib/graph';
import { compile, compileParts, disposeArrays, flatten, float32, pullback } from '../../lib/graph';
import { loadAddon } from '../../lib/native/load';
import { gelu, l2Normalize, linear } from '../../lib/ops';
import { failure } from '../failure';
import { expectGivenBack } from '../memory';

const depth = 4;
const width = 8;

interface Inputs<Leaf> {
  readonly weights: Readonly<Record<string, { readonly weight: Leaf; readonly bias: Leaf }>>;
  readonly x: Leaf;
  readonly upstream: Leaf;
}

const specs: Inputs<Spec> = {
  weights: Object.fromEntries(
    Array.from({ length: depth }, (_, i) => [
      `layer${String(i)}`,
      { weight: float32(width, width), bias: float32(width) },
    ]),
  ),
  x: float32(3, width),
  upstream: float32(3, width),
};

interface Outputs {
  readonly y: Tensor;
  readonly gradients: Readonly<Record<string, Tensor>>;
}

// Rows of the weights at unit length follow from a unit alone.
function layers({ weights, x, upstream }: Inputs<Tensor>): Outputs {
  const y = Object.values(weights).reduce(
    (h, { weight, bias }) => gelu(linear(h, l2Normalize(weight, { eps: 1e-6 }), bias), 'erf'),
    x,
  );
  const gradients = pullback([y], [upstream], weights);
  return {
    y,
    gradients: Object.fromEntries(
      flatten(gradients).map(({ path, leaf }) => [path, leaf as Tensor]),
    ),
  };
}

const options: PartsOptions = {
  unit: (path) => (path.startsWith('weights.') ? path.split('.')[1] : undefined),
  limitBytes: 1,
  late: ['upstream'],
};

function values(n: number, seed: number): Float32Array {
  return Float32Array.from({ length: n }, (_, i) => Math.sin(seed + 1.7 * i));
}

const given = flatten(specs).map(({ path, leaf }, i): [string, DeviceArray] => {
  const { shape } = leaf as Spec;
  const length = shape.reduce((product, n) => product * n, 1);
  return [path, DeviceArray.from(values(length, i), shape)];
});

function known<T>(map: ReadonlyMap<string, T>, path: string): T {
  const value = map.get(path);
  if (value === undefined) throw new Error(`${path} must be there`);
  return value;
}

async function inParts(program: ProgramInParts): Promise<Map<string, number[]>> {
  const results = new Map<string, DeviceArray>();
  const work = DeviceArray.empty({ dtype: 'uint8', shape: [program.workBytes] });
  const all = new Map<string, number[]>();
  for (const [i, part] of program.parts.entries()) {
    for (const path of part.results) {
      if (!results.has(path)) results.set(path, DeviceArray.empty(known(program.results, path)));
    }
    // No more than it says it reads.
    const inputs = new Map(given.filter(([path]) => part.inputs.includes(path)));
    await program.run(i, inputs, results, work);
    for (const path of part.ends) {
      const array = known(results, path);
      all.set(path, [...(await array.read())]);
      array.dispose();
      results.delete(path);
    }
  }
  work.dispose();
  expect(results.size).toBe(0);
  return all;
}

test.each([false, true])('the bits of the whole; units that come and go: %s', async (fleeting) => {
  const before = loadAddon().memory();
  const whole = compile<Inputs<Spec>, Outputs>('whole', layers, specs);
  const arrays = new Map(given);
  const of = (path: string): DeviceArray => known(arrays, path);
  const outputs = await whole.run({
    weights: Object.fromEntries(
      Object.keys(specs.weights).map((name) => [
        name,
        { weight: of(`weights.${name}.weight`), bias: of(`weights.${name}.bias`) },
      ]),
    ),
    x: of('x'),
    upstream: of('upstream'),
  });
  const parts = compileParts<Inputs<Spec>>('parts', layers, specs, { ...options, fleeting });
  const actual = await inParts(parts);
  for (const { path, leaf } of flatten(outputs)) {
    expect(actual.get(path)).toEqual([...(await (leaf as DeviceArray).read())]);
  }
  disposeArrays(outputs);
  whole.dispose();
  parts.dispose();
  expectGivenBack(before);
});

test('a part reads one unit, and a gradient is there when its layer is done', () => {
  const program = compileParts<Inputs<Spec>>('parts', layers, specs, {
    ...options,
    fleeting: true,
  });
  const { parts } = program;
  for (const { units } of parts) expect(units.length).toBeLessThanOrEqual(1);
  // Forward, backward, and the last layer, where the gradient comes in, twice.
  expect(parts.length).toBeGreaterThanOrEqual(2 * depth - 1);
  const partOf = (path: string): number => parts.findIndex(({ ends }) => ends.includes(path));
  const late = parts.findIndex(({ inputs }) => inputs.includes('upstream'));
  expect(partOf('y')).toBeGreaterThanOrEqual(depth - 1);
  for (let i = 0; i < depth; i++) {
    const made = partOf(`gradients.layer${String(i)}.weight`);
    expect(made).toBeGreaterThanOrEqual(late);
    if (i > 0) {
      expect(made).toBeLessThan(partOf(`gradients.layer${String(i - 1)}.weight`));
    }
  }
  program.dispose();
});

test('with room for all units there is one part before what comes late, and one behind', () => {
  const program = compileParts<Inputs<Spec>>('parts', layers, specs, {
    ...options,
    limitBytes: Infinity,
  });
  expect(program.parts.map(({ inputs }) => inputs.includes('upstream'))).toEqual([false, true]);
  program.dispose();
});

test('an input that is missing is named', async () => {
  const program = compileParts<Inputs<Spec>>('parts', layers, specs, options);
  const error = await failure(program.run(0, new Map(), new Map(), undefined));
  expect(error.code).toBe('ERR_ARGUMENT');
  expect(error.message).toMatch(/^parts: (?:input|work|result).* must be given, got none$/u);
  program.dispose();
});

afterAll(() => {
  for (const [, array] of given) array.dispose();
});
