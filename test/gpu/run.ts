// The tests of a GPU. Without one they all count as skipped, with the reason.
//
//   npm run test:gpu                           everything
//   npm run test:gpu -- attention training     tests whose group or name contains one of the words
//   --json FILE     what became of every test, and its figures
//   --limit 120     seconds; what is not begun by then fails
//   --verbose       a line for every test
//   --device cuda:1 another GPU; `cpu` tries the tests themselves, float32 alone
//
// SIGLIP2_GOLDEN names the folder with the golden numbers.
import { totalmem } from 'node:os';
import { parseArgs } from 'node:util';
import type { Device } from '../../lib/array';
import { resolveDevice } from '../../lib/array';
import { loadAddon } from '../../lib/native/load';
import { declareCollectives } from './collectives';
import { declareGoldens } from './goldens';
import { declareImages } from './images';
import { declareOps } from './ops';
import { declarePrograms } from './programs';
import { Runner } from './runner';
import { declareTowers } from './towers';

// Read by the addon: memory that a kernel should have written and did not is a NaN.
process.env['SIGLIP2_POISON'] ??= '1';

/** The full name of the device, or why it is not here. */
function find(choice: Device): { readonly device: Device; readonly missing?: string } {
  try {
    return { device: resolveDevice(choice).device };
  } catch (error) {
    return { device: choice, missing: error instanceof Error ? error.message : String(error) };
  }
}

function memoryOf(device: Device): number {
  const { devices } = loadAddon().describe().cuda;
  return devices.find(({ index }) => device === `cuda:${String(index)}`)?.memoryBytes ?? totalmem();
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      json: { type: 'string' },
      limit: { type: 'string', default: '600' },
      verbose: { type: 'boolean', default: false },
      device: { type: 'string', default: 'cuda' },
    },
  });
  const { device, missing } = find(values.device as Device);
  const runner = new Runner(missing?.split('\n').join('; '));
  const { cuda, isa, kernels } = loadAddon().describe();
  declarePrograms(runner, device, memoryOf(device));
  declareOps(runner, device);
  declareGoldens(runner, device);
  declareImages(runner, device);
  declareTowers(runner, device);
  declareCollectives(runner, device);
  const passed = await runner.run(
    {
      words: positionals,
      timeout: 60,
      limit: Number(values.limit),
      json: values.json,
      verbose: values.verbose,
    },
    {
      device,
      isa,
      cuda,
      node: process.version,
      kernels: kernels.map(({ name, cuda: compiled }) => ({ name, compiled })),
    },
  );
  process.exitCode = passed ? 0 : 1;
}

void main();
