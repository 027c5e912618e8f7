// NaFlex at up to 1,024 patches with mixed aspect ratios: the packed batch against the padded batch of
// the same images, one after the other in turns, best of each. Nothing is saved where images fill the
// budget; sizes fall as they do where small images are not enlarged. Weights are zero: no kernel's time
// depends on them.
//
//   npm run bench:naflex          S/16 and B/16, rows in bench/results/naflex.json
//   npm run bench:naflex -- S/16  that size alone; nothing is written
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { RunInput } from '../lib/array';
import { DeviceArray } from '../lib/array';
import { collate } from '../lib/embed/collate';
import type { PreparedValues } from '../lib/embed/collate';
import type { Program, Spec, Tensor } from '../lib/graph';
import { compile, disposeArrays, mapTree } from '../lib/graph';
import type { ModelConfig, VariantName, VisionInput, VisionParameters } from '../lib/model';
import {
  packedInputSpecs,
  variant,
  visionInputSpecs,
  visionParameters,
  visionTower,
} from '../lib/model';

const rounds = 3;

/** Grids of three batches, from full budgets to mixed sizes. */
const batches: Readonly<Record<string, readonly (readonly [number, number])[]>> = {
  'full budget': [
    [32, 32],
    [27, 37],
    [45, 22],
    [25, 40],
  ],
  'mixed aspect': [
    [32, 32],
    [18, 42],
    [14, 60],
    [24, 24],
  ],
  'mixed size': [
    [32, 32],
    [16, 16],
    [12, 21],
    [9, 7],
  ],
};

interface Specs {
  parameters: VisionParameters<Spec>;
  input: VisionInput<Spec>;
}

interface Row {
  readonly model: string;
  readonly batch: string;
  /** Rows x columns of patches, one per image. */
  readonly grids: string;
  /** Share of the padded batch's rows that are padding. */
  readonly padding: number;
  readonly paddedMilliseconds: number;
  readonly packedMilliseconds: number;
  /** Packed by padded. */
  readonly ratio: number;
  readonly compileMilliseconds: number;
}

function program(config: ModelConfig, input: VisionInput<Spec>): Program<Specs, { y: Tensor }> {
  return compile<Specs, { y: Tensor }>(
    'naflex',
    (x) => {
      const { embedding } = visionTower(x.parameters, config, x.input);
      if (embedding === undefined) throw new Error('the tower must have a head');
      return { y: embedding };
    },
    { parameters: visionParameters(config, ({ dtype, shape }) => ({ dtype, shape })), input },
  );
}

function padded(images: readonly PreparedValues[], rowWidth: number): VisionInput<RunInput> {
  const length = Math.max(...images.map(({ grid }) => grid[0] * grid[1]));
  const patches = new Float32Array(images.length * length * rowWidth);
  const mask = new Uint8Array(images.length * length);
  images.forEach(({ values, grid }, i) => {
    patches.set(values, i * length * rowWidth);
    mask.fill(1, i * length, i * length + grid[0] * grid[1]);
  });
  return { patches, shapes: Int32Array.from(images.flatMap(({ grid }) => [...grid])), mask };
}

async function time(
  program_: Program<Specs, { y: Tensor }>,
  parameters: VisionParameters<DeviceArray>,
  input: VisionInput<RunInput>,
): Promise<number> {
  const { outputs, times } = await program_.profile({ parameters, input });
  disposeArrays(outputs);
  return times.reduce((sum, { nanoseconds }) => sum + nanoseconds, 0) / 1e6;
}

async function measure(name: VariantName): Promise<Row[]> {
  const config = variant(name, { layout: 'naflex' });
  const parameters = mapTree<VisionParameters<Spec>, Spec, DeviceArray>(
    visionParameters(config, ({ dtype, shape }) => ({ dtype, shape })),
    ({ shape }) =>
      DeviceArray.from(new Float32Array(shape.reduce((product, n) => product * n, 1)), shape),
  ) as VisionParameters<DeviceArray>;
  const rowWidth = 3 * config.vision.patch ** 2;
  const rows: Row[] = [];
  for (const [batch, grids] of Object.entries(batches)) {
    const images = grids.map((grid) => ({
      grid,
      values: new Float32Array(grid[0] * grid[1] * rowWidth).fill(0.25),
    }));
    const length = Math.max(...grids.map(([height, width]) => height * width));
    const real = grids.reduce((sum, [height, width]) => sum + height * width, 0);
    const packedBatch = collate(config, images);
    const paddedBatch = padded(images, rowWidth);
    const before = performance.now();
    const packedProgram = program(
      config,
      packedInputSpecs(config, images.length, packedBatch.length),
    );
    const compileMilliseconds = performance.now() - before;
    const paddedProgram = program(config, visionInputSpecs(config, images.length, length));
    let [paddedMilliseconds, packedMilliseconds] = [Infinity, Infinity];
    for (let round = 0; round < rounds; round++) {
      const each = [
        await time(paddedProgram, parameters, paddedBatch),
        await time(packedProgram, parameters, packedBatch.input),
      ];
      paddedMilliseconds = Math.min(paddedMilliseconds, each[0]);
      packedMilliseconds = Math.min(packedMilliseconds, each[1]);
    }
    packedProgram.dispose();
    paddedProgram.dispose();
    const row = {
      model: name,
      batch,
      grids: grids.map((grid) => grid.join('x')).join(' '),
      padding: 1 - real / (length * images.length),
      paddedMilliseconds,
      packedMilliseconds,
      ratio: packedMilliseconds / paddedMilliseconds,
      compileMilliseconds,
    };
    rows.push(row);
    process.stdout.write(
      `${name.padEnd(6)} ${batch.padEnd(13)} padding ${(100 * row.padding).toFixed(0).padStart(3)} %  ` +
        `padded ${paddedMilliseconds.toFixed(0).padStart(6)} ms  packed ${packedMilliseconds.toFixed(0).padStart(6)} ms  ` +
        `ratio ${row.ratio.toFixed(2)}  (compiled in ${compileMilliseconds.toFixed(0)} ms)\n`,
    );
  }
  disposeArrays(parameters);
  return rows;
}

async function main(): Promise<void> {
  const wanted = process.argv[2];
  const names: readonly VariantName[] = ['S/16', 'B/16'];
  const rows: Row[] = [];
  for (const name of names) {
    if (wanted === undefined || wanted === name) rows.push(...(await measure(name)));
  }
  if (wanted !== undefined) return;
  const path = join(__dirname, 'results', 'naflex.json');
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.tmp`, `${JSON.stringify({ rows }, null, 2)}\n`);
  renameSync(`${path}.tmp`, path);
}

void main();
