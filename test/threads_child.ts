// Runs every case that is divided among threads, forward and backward, and prints a digest of the bits
// of all results by case. Started by threads.test.ts, in a process per number of threads.
import { createHash } from 'node:crypto';
import type { DeviceArray } from '../lib/array';
import type { Spec } from '../lib/graph';
import type { OpCase } from './op_cases';
import { forwardProgram, gradientProgram, operandArrays, splitCases, valuesOf } from './op_cases';
import { Random } from './reference/random';

async function digest(c: OpCase): Promise<string> {
  const hash = createHash('sha256');
  const add = async (arrays: Readonly<Record<string, DeviceArray>>): Promise<void> => {
    for (const array of Object.values(arrays)) {
      const values = await array.read();
      hash.update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    }
  };
  const random = new Random(1);
  const values = valuesOf(c, random);
  const outputs = await forwardProgram(c).run(operandArrays(c, values));
  await add(outputs);
  if (c.backward !== undefined) {
    const results = Object.fromEntries(
      Object.entries(outputs).map(([name, { dtype, shape }]): [string, Spec] => [
        name,
        { dtype, shape },
      ]),
    );
    const directions = Object.fromEntries(
      Object.entries(results).map(([name, { shape }]) => [
        name,
        Float32Array.from(random.array(shape, (r) => r.normal()).data),
      ]),
    );
    await add(
      await gradientProgram(c, results).run({ operands: operandArrays(c, values), directions }),
    );
  }
  return hash.digest('hex');
}

async function main(): Promise<void> {
  const digests: Record<string, string> = {};
  for (const c of splitCases) digests[`${c.op} ${c.name}`] = await digest(c);
  process.stdout.write(JSON.stringify(digests));
}

void main();
