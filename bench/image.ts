// Preparing images: resize, normalise and lay out, on one thread and on all, against sharp's resize
// (whose pixels are not Python's) and, where a python3 with Pillow and NumPy is at hand, Pillow's.
// Best of many runs, since others may use the machine too.
//
//   npm run bench:image          table on standard output, rows in bench/results/image.json
//   SIGLIP2_PYTHON=…             the python3 to ask
import { spawnSync } from 'node:child_process';
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import sharp from 'sharp';
import type { RawImage } from '../lib/image';
import { createProcessor, resizeImage } from '../lib/image';
import { loadAddon } from '../lib/native/load';
import { parsePreprocessor } from '../lib/weights';

const secondsPerCase = 1;
const workerFlag = '--worker';

const images: readonly {
  readonly name: string;
  readonly width: number;
  readonly height: number;
}[] = [
  { name: '12 MP', width: 4000, height: 3000 },
  { name: '640×480', width: 640, height: 480 },
];
const filters = { bilinear: 2, bicubic: 3 } as const;
const side = 224;

interface Row {
  readonly image: string;
  readonly work: string;
  readonly by: string;
  readonly milliseconds: number;
}

function noise(width: number, height: number): RawImage {
  const data = new Uint8Array(3 * width * height);
  let state = 1;
  for (let i = 0; i < data.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    data[i] = state >>> 24;
  }
  return { data, width, height, channels: 3 };
}

async function best(run: () => Promise<unknown>): Promise<number> {
  let least = Infinity;
  const end = performance.now() + 1000 * secondsPerCase;
  for (let round = 0; round < 5 || performance.now() < end; round++) {
    const start = performance.now();
    await run();
    least = Math.min(least, performance.now() - start);
  }
  return least;
}

/** Our own and sharp's times in this process, whose environment says how many threads there are. */
async function measure(): Promise<Row[]> {
  const { threads, isa } = loadAddon().describe();
  const by = `${String(threads)} thread${threads === 1 ? '' : 's'}, ${isa}`;
  const rows: Row[] = [];
  sharp.cache(false);
  sharp.concurrency(threads);
  for (const { name, width, height } of images) {
    const image = noise(width, height);
    const raw = { raw: { width, height, channels: 3 as const } };
    const row = async (work: string, who: string, run: () => Promise<unknown>): Promise<void> => {
      rows.push({ image: name, work, by: who, milliseconds: await best(run) });
    };
    for (const [filter, resample] of Object.entries(filters)) {
      const fixed = createProcessor(parsePreprocessor({ resample, size: side }, 'fixed'));
      const naflex = createProcessor(parsePreprocessor({ resample }, 'naflex'));
      await row(`${filter} ${String(side)}, bytes`, by, () =>
        resizeImage(image, side, side, filter as keyof typeof filters),
      );
      await row(`${filter} ${String(side)}, planes`, by, () => fixed.prepare(image));
      await row(`${filter} 256 patches`, by, () => naflex.prepare(image));
      const kernel = filter === 'bilinear' ? 'linear' : 'cubic';
      await row(`${filter} ${String(side)}, bytes`, `sharp, ${String(threads)}`, () =>
        sharp(image.data, raw).resize(side, side, { fit: 'fill', kernel }).raw().toBuffer(),
      );
    }
  }
  return rows;
}

const PILLOW = `
import json, sys, time
import numpy as np
from PIL import Image
rows = []
for name, w, h in json.loads(sys.argv[1]):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8))
    for filter, code in (("bilinear", 2), ("bicubic", 3)):
        def values():
            pixels = np.asarray(image.resize((${String(side)}, ${String(side)}), code))
            scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
            return np.ascontiguousarray(((scaled - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))
        for work, run in (("bytes", lambda: image.resize((${String(side)}, ${String(side)}), code)), ("planes", values)):
            least, end = 1e9, time.perf_counter() + 1
            while time.perf_counter() < end:
                start = time.perf_counter(); run(); least = min(least, time.perf_counter() - start)
            rows.append({"image": name, "work": f"{filter} ${String(side)}, {work}", "by": "Pillow " + Image.__version__, "milliseconds": 1000 * least})
print(json.dumps(rows))
`;

/** Pillow's times, or none where it is not installed. */
function pillow(): Row[] {
  const sizes = JSON.stringify(images.map(({ name, width, height }) => [name, width, height]));
  const python = process.env.SIGLIP2_PYTHON ?? 'python3';
  const { status, stdout } = spawnSync(python, ['-c', PILLOW, sizes], { encoding: 'utf8' });
  return status === 0 ? (JSON.parse(stdout) as Row[]) : [];
}

function inChild(environment: Readonly<Record<string, string>>): Row[] {
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    [...process.execArgv, __filename, workerFlag],
    { encoding: 'utf8', env: { ...process.env, ...environment } },
  );
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Row[];
}

async function main(): Promise<void> {
  if (process.argv.includes(workerFlag)) {
    process.stdout.write(JSON.stringify(await measure()));
    return;
  }
  const rows = [
    ...inChild({ SIGLIP2_THREADS: '1' }),
    ...inChild({ SIGLIP2_THREADS: '1', SIGLIP2_ISA: 'generic' }).filter(
      ({ by }) => !by.startsWith('sharp'),
    ),
    ...inChild({}),
    ...pillow(),
  ];
  const order = (row: Row): string => `${row.image} ${row.work}`;
  rows.sort((a, b) => order(a).localeCompare(order(b)));
  for (const { image, work, by, milliseconds } of rows) {
    process.stdout.write(
      `${image.padEnd(8)} ${work.padEnd(24)} ${by.padEnd(20)} ${milliseconds.toFixed(3).padStart(9)} ms\n`,
    );
  }
  const path = join(__dirname, 'results', 'image.json');
  mkdirSync(dirname(path), { recursive: true });
  const result = { processor: cpus()[0].model, rows };
  writeFileSync(`${path}.tmp`, `${JSON.stringify(result, null, 2)}\n`);
  renameSync(`${path}.tmp`, path);
}

void main();
